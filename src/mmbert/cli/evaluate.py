"""`mmbert evaluate`: measure a model on data with captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.cli._evaluate_grounding import grounding
from mmbert.cli._lexical import mlt
from mmbert.cli._matrix import matrix
from mmbert.cli._pictures import FontsOption, note_pictures
from mmbert.cli._records import read_records, usable_records
from mmbert.cli._tables import note_left_out, print_table
from mmbert.cli._vcr import evaluate_vcr
from mmbert.cli._vqa import evaluate_vqa
from mmbert.cli.common import (
    DeviceOption,
    FeaturesOption,
    Int8Option,
    JsonOption,
    ModelOption,
    SkipBadOption,
    counted,
    human_count,
    load_model,
    note,
    output_path,
    print_json,
    show_progress,
)
from mmbert.cli.translate import BeamOption, PenaltyOption
from mmbert.errors import UsageError

if TYPE_CHECKING:
    from mmbert.data.records import Record, Source
    from mmbert.evaluation.ranks import Report

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.command()(grounding)


ModeOption = Annotated[
    str,
    typer.Option(
        "--mode", help="embed: by vectors; rerank: the best of these are matched, too; match: every pair is (slow)."
    ),
]
RerankOption = Annotated[int, typer.Option("--rerank", help="With --mode rerank: how many of the best.")]


@app.callback()
def _evaluate() -> None:
    """Measure a model on data with captions."""


app.command()(mlt)


@app.command()
def retrieval(
    data: Annotated[
        str, typer.Option("--data", "-d", help="A folder with captions, or a corpus such as starter:validation.")
    ],
    model: ModelOption = "starter",
    lang: Annotated[str | None, typer.Option("--lang", help="Languages, e.g. de,fr. Default: all there are.")] = None,
    mode: ModeOption = "embed",
    rerank: RerankOption = 10,
    features: FeaturesOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the figures and a gallery of answers.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="A folder for the galleries as PNGs.")] = None,
    fonts: FontsOption = None,
    before: Annotated[
        Path | None,
        typer.Option("--before", help="What an earlier run printed with --json; the page compares with it."),
    ] = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Find images by their captions and captions by their images.

    R@k is the share of queries with a right answer among the first k; the mean is over languages. Texts are searched
    one language at a time.

    Examples:

      mmbert evaluate retrieval --data starter:heldout_style
      mmbert evaluate retrieval --model runs/first --data my-photos:test --lang de,fr --html retrieval.html
      mmbert evaluate retrieval --data my-photos --mode rerank --before before.json --html compared.html
      mmbert evaluate retrieval --model runs/vl --data my-photos --features my-photos.regions
    """
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data
    from mmbert.evaluation.report import write_retrieval_page
    from mmbert.evaluation.retrieval import Retrieval, as_mode
    from mmbert.explain.figures import can_draw

    if before is not None and html is None:
        raise UsageError("--before needs a page to compare on", hint="add --html compared.html")
    page = None if html is None else output_path(html)
    can_draw(png)
    earlier = None if before is None else read_report(before)
    bad = BadRecords(skip=skip_bad)
    checked = as_mode(mode, rerank)
    source = open_data(data, report=bad)
    bert = load_model(model, device, int8=int8)
    result = Retrieval(
        bert,
        read_records(source, [bert], features, bad),
        languages=split_languages(lang),
        mode=checked,
        rerank=rerank,
        progress=show_progress(),
        bad=bad,
    )
    report = result.report()
    gallery = result.gallery
    facts: dict[str, Any] = {"model": model, "data": data, "mode": mode}
    if mode == "rerank":
        facts["rerank"] = rerank
    facts |= {"images": len(gallery.images), "captions": len(gallery.texts), "languages": len(gallery.languages)}
    if page is not None:
        write_retrieval_page(
            page,
            result,
            before=earlier,
            names=("before" if before is None else before.stem, "now"),
            title=f"Retrieval on {data}",
            facts=[(name.capitalize(), human_count(v) if isinstance(v, int) else v) for name, v in facts.items()],
        )
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in bad]
        print_json(facts | {"left_out": left_out} | dict(report))
    else:
        _print(report, f"{data}: {counted(len(gallery.images), 'image')}, {counted(len(gallery.texts), 'caption')}")
        note_left_out(bad.found)
    if page is not None:
        note(f"page: {page}")
    if png is not None:
        from mmbert.evaluation.pictures import write_gallery_pictures

        note_pictures(*write_gallery_pictures(png, result, fonts=fonts or ()))


@app.command()
def translation_retrieval(
    data: Annotated[
        str, typer.Option("--data", "-d", help="A folder with captions or text columns, or a corpus by name.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A model trained on translations: a folder or a hub id.")],
    source: Annotated[str, typer.Option("--from", help="One language; pairs are read with its sentence first.")],
    target: Annotated[str, typer.Option("--to", help="The other language.")],
    mode: ModeOption = "embed",
    rerank: RerankOption = 10,
    distractors: Annotated[
        str | None, typer.Option("--distractors", help="Data whose sentences stand among the candidates, too.")
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Read each sentence with its image.")] = False,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Find the translation of each sentence among all others, in both directions.

    R@k is the share of sentences with a right answer among the first k. Records that have a sentence in common say the
    same.

    Examples:

      mmbert evaluate translation-retrieval --model runs/pairs/best --data parallel:test --from en --to de
      mmbert evaluate translation-retrieval -m runs/pairs/best -d parallel:test --from en --to de --mode rerank
        --distractors parallel:train --json
    """
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data
    from mmbert.evaluation.retrieval import as_mode
    from mmbert.evaluation.translation_retrieval import TranslationRetrieval

    checked = as_mode(mode, rerank)
    bad = BadRecords(skip=skip_bad)
    asked = open_data(data, report=bad)
    further: Source | list[Record] = [] if distractors is None else open_data(distractors, report=bad)
    records, others = ([opened[i] for i in range(len(opened))] for opened in (asked, further))
    if images:
        records, others = usable_records(records, bad), usable_records(others, bad)
    report = TranslationRetrieval(
        load_model(model, device, int8=int8),
        records,
        source=source,
        target=target,
        mode=checked,
        rerank=rerank,
        images=images,
        distractors=others,
        progress=show_progress(),
    ).report()
    facts: dict[str, Any] = {"model": model, "data": data, "mode": mode}
    if mode == "rerank":
        facts["rerank"] = rerank
    if distractors is not None:
        facts["distractors"] = distractors
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in bad]
        print_json(facts | report | {"left_out": left_out})
        return
    _print_pairs(report, data)
    note_left_out(bad.found)


@app.command()
def mt(
    data: Annotated[
        str, typer.Option("--data", "-d", help="A folder with captions or text columns, or a corpus by name.")
    ],
    to: Annotated[str, typer.Option("--to", help="Language that is written.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model that writes: a folder or a hub id.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Language that is read. Default: none, images are captioned.")
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Read the image, too.")] = False,
    beam: BeamOption = None,
    length_penalty: PenaltyOption = 1.0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many records.")] = None,
    features: FeaturesOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write JSON lines: src, mt and ref, as COMET reads them.")
    ] = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Translate data (or caption its images) and compare with what it says: sacreBLEU (13a, cased) and chrF.

    Models that read without accents, as MM-BERT's converted ones do, are also scored as originally: "folded" figures
    compare without accents, ß as ss, in lower case.

    The signatures say exactly how the figures were computed; figures with other signatures do not compare.

    Examples:

      mmbert evaluate mt --model runs/translation/best --data parallel-text:test --from en --to de
      mmbert evaluate mt --model runs/captions/best --data my-photos:test --to fr --out captions.jsonl
    """
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data
    from mmbert.evaluation.translation import evaluate_translation, write_texts

    where = None if out is None else output_path(out)
    if source == to:
        raise UsageError(f"translations from {source!r} into itself", hint="give two languages")
    bad = BadRecords(skip=skip_bad)
    opened = open_data(data, report=bad)
    bert = load_model(model, device, int8=int8)
    result = evaluate_translation(
        bert,
        read_records(opened, [bert], features, bad, pixels=images or source is None),
        source=source,
        target=to,
        images=images,
        beam=beam,
        length_penalty=length_penalty,
        limit=limit,
        progress=show_progress(),
    )
    if where is not None:
        write_texts(where, result)
    report = result.report
    if as_json:
        left_out = [{"where": place, "reason": reason} for place, reason in bad]
        print_json({"model": model, "data": data, **report, "left_out": left_out})
        return
    print(f"{data}, {source or 'images'} to {to}: {counted(report['texts'], 'text')}")
    for name in ("BLEU", "chrF", "BLEU_folded"):
        if name in report:
            print(f"{name.replace('_', ', ')} {report[name]:.2f}  {report[f'{name}_signature']}")
    note_left_out(bad.found)


app.command("matrix")(matrix)
app.command("vcr")(evaluate_vcr)
app.command("vqa")(evaluate_vqa)


def split_languages(given: str | None) -> list[str] | None:
    """``"de, fr"`` -> ``["de", "fr"]``; None stays None (all languages)."""
    return None if given is None else given.replace(",", " ").split()


def read_report(path: Path) -> Report:
    """The figures of an earlier run with ``--json``.

    Raises:
        UsageError: no such file, or it holds something else.
    """
    from mmbert.evaluation.report import DIRECTIONS, check_report

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="make it with --json > before.json") from error
    check_report(report)
    return {direction: report[direction] for direction in DIRECTIONS}


def _print_pairs(report: dict[str, Any], title: str) -> None:
    """Both directions of translation retrieval and their mean."""
    from mmbert.evaluation.report import COLUMNS

    one, other = report["source"], report["target"]
    queries, candidates = (tuple(map(human_count, report[name])) for name in ("queries", "candidates"))
    rows = []
    for way, key, asked, found in (
        (f"{one} to {other}", f"{one}_to_{other}", queries[0], candidates[1]),
        (f"{other} to {one}", f"{other}_to_{one}", queries[1], candidates[0]),
        ("mean", "mean", "", ""),
    ):
        figures = report[key]
        shares = (f"{100 * figures[name]:.1f}" for name in COLUMNS)
        rows.append([way, asked, found, *shares, f"{figures['median_rank']:.1f}", f"{figures['MRR']:.4f}"])
    heading = ("direction", "queries", "candidates", *COLUMNS, "median rank", "MRR")
    print_table(f"Translation retrieval, {title}", heading, rows)


def _print(report: Report, title: str) -> None:
    from mmbert.evaluation.report import COLUMNS

    for direction, heading in (("text_to_image", "Text to image"), ("image_to_text", "Image to text")):
        rows = [
            [language, *(f"{100 * values[name]:.1f}" for name in COLUMNS), f"{values['median_rank']:.1f}"]
            for language, values in report[direction].items()
        ]
        print_table(f"{heading}, {title}", ("language", *COLUMNS, "median rank"), rows)
