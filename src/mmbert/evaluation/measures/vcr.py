"""Right answers and rationales of VCR's questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
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
    report = evaluate_vcr(list(records)[: options.limit], answers=answers, rationales=rationales)
    return Measured(report, {name: report[name] for name in FIGURES if name in report})


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
