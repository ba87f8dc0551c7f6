"""`mmbert evaluate mlt`: figures, a row per word, and the file that holds them. Cheap to import."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.cli._records import read_records
from mmbert.cli._tables import note_left_out, print_table
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
from mmbert.files import whole_file

if TYPE_CHECKING:
    from mmbert.evaluation.lexical import LexicalResult

NAMES = {"with_image": "with image", "without_image": "without image", "majority": "most frequent translation"}
SHOWN_WORDS = 15
"""Rows of the table on the screen; the report has all."""


def mlt(
    data: Annotated[
        str, typer.Option("--data", "-d", help="A store or folder, or a corpus by name, with words and translations.")
    ],
    model: ModelOption,
    image: Annotated[
        bool, typer.Option("--image/--no-image", help="Choose with the image, too, where every record has one.")
    ] = True,
    lang: Annotated[
        str | None, typer.Option("--lang", help="Languages of the translations, e.g. de. Default: all.")
    ] = None,
    answers: Annotated[
        str, typer.Option("--answers", help="given, or occurring: the form that stands in the other sentence.")
    ] = "given",
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Answer with what training rows give (dictionary forms), not its forms.")
    ] = False,
    whole_list: Annotated[
        bool, typer.Option("--whole-list", help="Choose among all target words, not only the word's own in training.")
    ] = False,
    words: Annotated[
        Path | None, typer.Option("--words", help="Target words, one a line, of a model that does not name them.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option("--train", help="Training rows of such a model, in which translations are counted."),
    ] = None,
    features: FeaturesOption = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a row per word: FILE.csv, .json or .md.")
    ] = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Translate ambiguous words in their sentences (multimodal lexical translation): accuracy.

    Right is any translation that a record lists. Beside the model's accuracy with and without the image stands that of
    each word's most frequent translation in the rows that the model was trained on, all of it also for the words that
    these rows do not have. A record whose translations are not among the target words counts as wrong.

    Examples:

      mmbert evaluate mlt --model runs/lexical-translation-small/best --data mlt-de:test_2016
      mmbert evaluate mlt --model runs/mlt/best --data mlt-de:test_2018 --no-image --report words.csv
      mmbert evaluate mlt --model converted --data mlt-de:test_2016 --words MLT_vocab.txt --train mlt-de:train
    """
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data
    from mmbert.evaluation.lexical import evaluate_lexical

    where = None if report is None else _report_path(report)
    if answers not in ("given", "occurring"):
        raise UsageError(f"--answers {answers!r}", hint="given or occurring")
    bad = BadRecords(skip=skip_bad)
    source = open_data(data, report=bad)
    bert = load_model(model, device, int8=int8)
    result = evaluate_lexical(
        bert,
        read_records(source, [bert], features, bad, pixels=image and bert.processor.images is not None),
        target=_target(bert, words, train),
        images=image,
        answers=answers,  # type: ignore[arg-type]
        as_given=as_given,
        whole_list=whole_list,
        languages=None if lang is None else lang.replace(",", " ").split(),
        progress=show_progress(),
    )
    if where is not None:
        write_words(where, result.words())
        note(f"report: {where}")
    figures = result.report()
    if as_json:
        left_out = [{"where": place, "reason": reason} for place, reason in bad]
        facts = {"model": model, "data": data, "answers": answers, "as_given": as_given, "whole_list": whole_list}
        print_json(facts | figures | {"left_out": left_out})
        return
    _print(data, result, figures)
    note_left_out(bad.found)


def _target(bert: Any, words: Path | None, train: str | None) -> Any:
    """What the model's outputs mean: as it says itself, as far as the options do not.

    Rows are counted in the form in which the model was trained to answer, whatever is asked to be right.
    """
    from mmbert.data.lexicon import read_lexicon, read_words
    from mmbert.data.sources import open_data
    from mmbert.evaluation.lexical import target_words

    target = target_words(bert, None if words is None else read_words(words))
    if train is not None:
        rows = open_data(train)
        target.lexicon = read_lexicon((rows[i] for i in range(len(rows))), target.answers)
    return target


def _report_path(path: Path) -> Path:
    if path.suffix not in (".csv", ".json", ".md"):
        raise UsageError(f"no report of kind {path.suffix or path.name!r}", hint="end the name in .csv, .json or .md")
    return output_path(path)


def write_words(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one row per word, as CSV, JSON or a Markdown table, as the name ends.

    Raises:
        UsageError: it cannot be written.
    """
    if path.suffix == ".json":
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    elif path.suffix == ".csv":
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue()
    else:
        lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    with whole_file(path) as part:
        part.write_text(text, "utf-8")


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)


def _print(data: str, result: LexicalResult, figures: dict[str, Any]) -> None:
    unseen = figures["unseen"]
    parts = [figures, unseen] if unseen["words"] else [figures]
    print_table(
        f"{data}: {counted(figures['items'], 'item')}, "
        f"{human_count(figures['several_references'])} with several right words",
        ("chosen", "right", "of unseen words")[: 1 + len(parts)],
        [[name, *(_cell(part[way]) for part in parts)] for way, name in NAMES.items() if figures[way] is not None],
    )
    if unseen["words"]:
        words, items = len(unseen["words"]), unseen["items"]
        print(f"{counted(words, 'word')} not seen in training: {counted(items, 'item')}")
    else:
        print("training has seen every word that is asked about")
    print(f"no right word in the list of target words (counts as wrong): {counted(figures['out_of_list'], 'item')}")
    print(f"{_cell(figures['reachable'])} % of the items have a right word among those chosen from")
    rows = [
        [row["word"], str(row["items"]), *(_cell(row[way]) for way in NAMES if figures[way] is not None)]
        for row in result.words()[:SHOWN_WORDS]
    ]
    ways = [name for way, name in NAMES.items() if figures[way] is not None]
    print_table("The most frequent words", ("word", "items", *ways), rows)
