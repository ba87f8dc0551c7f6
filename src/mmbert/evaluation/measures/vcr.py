"""Right answers and rationales of VCR's questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.evaluation.examples import MOST, Examples, spread
from mmbert.evaluation.measures import Measured
from mmbert.evaluation.vcr import STEPS, Chooser, Step, evaluate_vcr

FIGURES = {"Q2A": "Q→A", "QA2R": "QA→R", "Q2AR": "Q→AR"}


class Options(BaseModel):
    """What is chosen.

    Attributes:
        steps: ``answer``, ``rationale`` or both, which gives the joint accuracy, too.
        task: options of the task ``vcr``, as the run's components have them (``objects``, ablations).
        limit: so many questions only, from the first.
    """

    model_config = ConfigDict(extra="forbid")
    steps: list[Step] = Field(default=["answer"], min_length=1)
    task: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """Q2A, QA2R and Q2AR, as far as the steps go."""
    answers, rationales = (Chooser.of(model, step, options.task) if step in options.steps else None for step in STEPS)
    asked = list(records)[: options.limit]
    report = evaluate_vcr(asked, answers=answers, rationales=rationales)
    choosers = {step: one for step, one in zip(STEPS, (answers, rationales), strict=True) if one is not None}
    figures = {name: report[name] for name in FIGURES if name in report}
    return Measured(report, figures, partial(_examples, asked, choosers))


def _examples(records: Sequence[Record], choosers: dict[Step, Chooser]) -> Examples:
    """Questions, and in each step what was chosen and what is right."""
    chosen = [records[i] for i in spread(len(records), MOST // len(choosers))]
    rows = []
    for step, chooser in choosers.items():
        given = [record.annotation["answer_label"] if step == "rationale" else None for record in chosen]
        found = chooser.probabilities(list(zip(chosen, given, strict=True))).argmax(1)
        for record, number in zip(chosen, found.tolist(), strict=True):
            choices = [_sentence(choice, record) for choice in record.annotation[f"{step}_choices"]]
            right = record.annotation[f"{step}_label"]
            hit = "yes" if number == right else "no"
            rows.append((step, _sentence(record.annotation["question"], record), choices[number], choices[right], hit))
    return Examples(("", "question", "chosen", "right one", "right"), rows)


def _sentence(tokens: Sequence[str | list[int]], record: Record) -> str:
    """Tokens as text; an object is named with its number, as in the corpus (``person1``)."""
    words = (
        token
        if isinstance(token, str)
        else ", ".join(f"{record.boxes[number].name or 'object'}{number + 1}" for number in token)
        for token in tokens
    )
    return " ".join(words)


def how(options: Options) -> str:
    """Which questions."""
    return "all questions" if options.limit is None else f"the first {options.limit} questions"


def table(report: dict[str, Any]) -> list[str]:
    """The accuracies."""
    names = [name for name in FIGURES if name in report]
    return [
        "| questions | " + " | ".join(FIGURES[name] for name in names) + " |",
        "|---" * (1 + len(names)) + "|",
        f"| {report['questions']} | " + " | ".join(f"{100 * report[name]:.1f}" for name in names) + " |",
    ]
