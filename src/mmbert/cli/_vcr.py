"""What `mmbert evaluate vcr` and `mmbert predict vcr` do. Cheap to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli._records import read_records, usable_records
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
from mmbert.errors import UsageError

if TYPE_CHECKING:
    from mmbert.data.records import BadRecords, Record
    from mmbert.evaluation.vcr import Chooser, Step

DataOption = Annotated[
    str,
    typer.Option(
        "--data", "-d", help="A store made by `mmbert data prepare vcr`, with the split behind it: STORE:val."
    ),
]
AnswersOption = Annotated[
    str | None, typer.Option("--q2a", help="Model that chooses answers: a folder or a hub id.", show_default=False)
]
RationalesOption = Annotated[
    str | None,
    typer.Option("--qa2r", help="Model that chooses rationales; the same one for a multi-task model."),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="Option of the task as NAME=VALUE (objects=mentioned). Default: as the model's recipe.yaml says.",
    ),
]


def evaluate_vcr(
    data: DataOption,
    q2a: AnswersOption = None,
    qa2r: RationalesOption = None,
    option: TaskOption = None,
    features: FeaturesOption = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Choose answers and rationales to VCR's questions, and count the right ones.

    With both models (or one model twice) also the share of questions of which answer and rationale are right. The
    rationale is chosen with the right answer given, as in the official figures.

    Examples:

      mmbert evaluate vcr --data stores/vcr:val --q2a runs/q2a/best --qa2r runs/qa2r/best
      mmbert evaluate vcr --data stores/vcr:val --q2a runs/both/best --qa2r runs/both/best --json
      mmbert evaluate vcr --data stores/vcr:val --q2a runs/q2a/best --option image=false
    """
    from mmbert.evaluation import vcr

    if q2a is None and qa2r is None:
        raise UsageError("no model is given", hint="--q2a MODEL, --qa2r MODEL, or both")
    records, bad = _open(data, skip_bad)
    answers, rationales, records = _choosers(records, bad, q2a, qa2r, option, features, device, int8)
    report = vcr.evaluate_vcr(records, answers=answers, rationales=rationales, progress=show_progress())
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in bad]
        print_json({"data": data, "q2a": q2a, "qa2r": qa2r, **report, "left_out": left_out})
        return
    names = {"Q2A": "question to answer", "QA2R": "question and answer to rationale", "Q2AR": "both right"}
    rows = [(name, names[name], f"{100 * report[name]:.2f}") for name in names if name in report]
    print_table(f"{data}: {counted(report['questions'], 'question')}", ("", "", "% right"), rows, left=(0, 1))
    note_left_out(bad.found)


def predict_vcr(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")],
    q2a: AnswersOption = None,
    qa2r: RationalesOption = None,
    option: TaskOption = None,
    features: FeaturesOption = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Write the probabilities of VCR's answers, and of its rationales given each answer, as its leaderboard takes them.

    Examples:

      mmbert predict vcr --data stores/vcr:test --q2a runs/q2a/best --qa2r runs/qa2r/best --out test.csv
    """
    from mmbert.evaluation import vcr

    if q2a is None or qa2r is None:
        raise UsageError("the leaderboard asks for answers and rationales", hint="give both --q2a and --qa2r")
    where = output_path(out)
    records, bad = _open(data, False)
    answers, rationales, records = _choosers(records, bad, q2a, qa2r, option, features, device, int8)
    assert answers is not None
    assert rationales is not None
    found = vcr.predict_vcr(records, answers, rationales, progress=show_progress())
    vcr.write_leaderboard(where, records, *found)
    if as_json:
        print_json({"data": data, "q2a": q2a, "qa2r": qa2r, "questions": len(records), "file": where})
    else:
        note(f"{where}: {counted(len(records), 'question')}")


def _open(data: str, skip_bad: bool) -> tuple[list[Record], BadRecords]:
    from mmbert.data.records import BadRecords
    from mmbert.data.sources import open_data

    bad = BadRecords(skip=skip_bad)
    source = open_data(data, report=bad)
    records = [source[i] for i in range(len(source))]
    wrong = next((record for record in records if "answer_choices" not in record.annotation), None)
    if wrong is not None:
        raise UsageError(
            f"{data} has no questions with choices",
            hint="`mmbert data prepare vcr` makes a store of the official files",
        )
    return records, bad


def _choosers(
    records: list[Record],
    bad: BadRecords,
    q2a: str | None,
    qa2r: str | None,
    option: list[str] | None,
    features: list[str] | None,
    device: str | None,
    int8: bool,
) -> tuple[Chooser | None, Chooser | None, list[Record]]:
    """The choosers of both steps (one model loaded once), and the records that they can read."""
    from mmbert.evaluation.vcr import Chooser, trained_options

    names = [name for name in dict.fromkeys((q2a, qa2r)) if name is not None]
    models = {name: load_model(name, device, int8=int8) for name in names}
    records = read_records(records, list(models.values()), features, bad)
    changed = _options(option)

    def chooser(name: str | None, step: Step) -> Chooser | None:
        if name is None:
            return None
        model = models[name]
        options = None if not changed else trained_options(model.name_or_path, step) | changed
        return Chooser.of(model, step, options)

    found = chooser(q2a, "answer"), chooser(qa2r, "rationale")
    if not features and any(one is not None and one.task.options.image for one in found):
        records = usable_records(records, bad)
    return *found, records


def _options(given: list[str] | None) -> dict[str, object]:
    """``["objects=mentioned"]`` as options.

    Raises:
        ConfigError: one is not NAME=VALUE.
        UsageError: one is the step, which the models' own options say.
    """
    from mmbert.data.yaml_values import read_settings

    found = read_settings(given or (), example="--option objects=mentioned")
    if "step" in found:
        raise UsageError("the step is no option here", hint="--q2a takes what chooses answers, --qa2r rationales")
    return found
