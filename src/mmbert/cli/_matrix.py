"""`mmbert evaluate matrix`: every language against every language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli._records import read_records
from mmbert.cli._tables import note_left_out
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
from mmbert.errors import UsageError
from mmbert.plugins import nearest


def matrix(
    data: Annotated[str, typer.Option("--data", "-d", help="A folder with captions or text columns, or a corpus.")],
    model: ModelOption = "starter",
    lang: Annotated[str | None, typer.Option("--lang", help="Languages, e.g. de,fr. Default: all there are.")] = None,
    metric: Annotated[str, typer.Option("--metric", help="What is printed: R@1, R@5, R@10 or median_rank.")] = "R@1",
    images: Annotated[bool, typer.Option(help="A row and a column for the images.")] = True,
    features: FeaturesOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with heat maps.")] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="Write the heat map of --metric, R@1 unless told, as a picture.")
    ] = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Find captions of every language by captions of every language, and images: by their vectors.

    Rows ask, columns answer, in percent of the queries (** is 100). A right answer is a caption of the same image, or
    the image. Data without images give the captions alone.

    Examples:

      mmbert evaluate matrix --data starter:validation
      mmbert evaluate matrix --model runs/first/best --data my-photos:test --lang de,fr --html matrix.html
      mmbert evaluate matrix --data my-photos:test --metric R@5 --png matrix.png
      mmbert evaluate matrix --data parallel-text:test --no-images --metric R@5 --json
    """
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data
    from mmbert.evaluation.matrix import METRICS, as_cells, as_text, kinds_in_words
    from mmbert.evaluation.matrix_page import measure_matrix, write_matrix_page

    if metric not in METRICS:
        close = nearest(metric, METRICS)
        raise UsageError(
            f"unknown metric {metric!r}", hint=f"did you mean {close!r}?" if close else f"known: {', '.join(METRICS)}"
        )
    page, sheet = (None if path is None else output_path(path) for path in (html, png))
    if sheet is not None:
        _drawable(metric)
    bad = BadRecords(skip=skip_bad)
    source = open_data(data, report=bad)
    bert = load_model(model, device, int8=int8)
    records = read_records(source, [bert], features, bad)
    languages = None if lang is None else lang.replace(",", " ").split()
    found, gallery = measure_matrix(bert, records, languages, images=images, bad=bad, progress=show_progress())
    facts = {"model": model, "data": data, "images": len(gallery.images), "captions": len(gallery.texts)}
    if page is not None:
        shown = [(name.capitalize(), human_count(v) if isinstance(v, int) else v) for name, v in facts.items()]
        write_matrix_page(page, found, title=f"Languages on {data}", facts=shown)
    if sheet is not None:
        from mmbert.evaluation.pictures import write_heat_map

        title = f"Queries (rows) that find a right answer\namong the first {metric.removeprefix('R@')} (columns), %"
        write_heat_map(sheet, found.names, as_cells(found, metric), title)
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in bad]
        print_json(facts | {"left_out": left_out} | found.as_dict())
    else:
        captions, pictures = counted(len(gallery.texts), "caption"), counted(len(gallery.images), "image")
        print(f"{metric}, {data}: {captions}, {pictures}")
        print("\n".join(as_text(found, metric)))
        if metric != "median_rank":
            print("mean: " + ", ".join(kinds_in_words(found.means(metric))))
        note_left_out(bad.found)
    for kind, path in (("page", page), ("picture", sheet)):
        if path is not None:
            note(f"{kind}: {path}")


def _drawable(metric: str) -> None:
    """Look whether there can be a heat map.

    Raises:
        UsageError: not of ranks, and not without Matplotlib.
    """
    from mmbert.explain.figures import need_matplotlib

    if metric == "median_rank":
        raise UsageError("a heat map shows fractions, not ranks", hint="--metric R@1, R@5 or R@10")
    need_matplotlib()
