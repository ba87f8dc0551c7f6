"""What `mmbert evaluate vqa` and `mmbert predict vqa` do. Cheap to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli._records import read_records
from mmbert.cli._tables import note_left_out, print_table
from mmbert.cli.common import (
    DeviceOption,
    FeaturesOption,
    Int8Option,
    JsonOption,
    SkipBadOption,
    counted,
    load_model,
    note,
    output_path,
    print_json,
    show_progress,
)

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.data.records import BadRecords, Record

DataOption = Annotated[
    str,
    typer.Option("--data", "-d", help="A store made by `mmbert data prepare vqa_v2`, and its split: STORE:val."),
]
AnswererOption = Annotated[
    str, typer.Option("--model", "-m", help="A model that answers questions: a folder or a hub id.", show_default=False)
]
NoImagesOption = Annotated[bool, typer.Option("--no-images", help="Ask without the images (a text-only baseline).")]


def evaluate_vqa(
    data: DataOption,
    model: AnswererOption,
    features: FeaturesOption = None,
    no_images: NoImagesOption = False,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Answer questions about images and score the answers as the official evaluation of VQA v2 does.

    Examples:

      mmbert evaluate vqa --data stores/vqa:val --model runs/vqa/best
      mmbert evaluate vqa --data stores/vqa:val --model runs/vqa/best --features vqa.regions --json
    """
    from mmbert.evaluation.question_answering import evaluate_answers

    bert, records, bad = _open(data, model, features, device, int8, skip_bad, not no_images)
    report = evaluate_answers(bert, records, images=not no_images, progress=show_progress())
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in bad]
        print_json({"model": model, "data": data, **report, "left_out": left_out})
        return
    rows = [("overall", f"{report['overall']:.2f}")]
    rows += [(name, f"{value:.2f}") for name, value in report["answer_types"].items() if name]
    print_table(f"{data}: {counted(report['questions'], 'question')}", ("", "accuracy %"), rows)
    note_left_out(bad.found)


def predict_vqa(
    data: DataOption,
    model: AnswererOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    features: FeaturesOption = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Write the answers to all questions of a split as EvalAI takes them: [{"question_id": …, "answer": …}, …].

    Examples:

      mmbert predict vqa --data stores/vqa:test-dev --model runs/vqa/best --out test-dev.json
    """
    from mmbert.evaluation.question_answering import answer_records, write_answers

    where = output_path(out)
    bert, records, _ = _open(data, model, features, device, int8, False)
    write_answers(where, answer_records(bert, records, progress=show_progress()))
    if as_json:
        print_json({"model": model, "data": data, "questions": len(records), "file": where})
    else:
        note(f"{where}: {counted(len(records), 'answer')}")


def _open(
    data: str,
    model: str,
    features: list[str] | None,
    device: str | None,
    int8: bool,
    skip_bad: bool,
    images: bool = True,
) -> tuple[MMBert, list[Record], BadRecords]:
    """The model, and the records that it can read."""
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data

    bad = BadRecords(skip=skip_bad)
    source = open_data(data, report=bad)
    bert = load_model(model, device, int8=int8)
    return bert, read_records(source, [bert], features, bad, pixels=images), bad
