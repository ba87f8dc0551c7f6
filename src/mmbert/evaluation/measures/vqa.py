"""Answers to the questions of validation data, scored by the official rules of VQA v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.data.answers import soft_scores
from mmbert.data.records import Record
from mmbert.evaluation.examples import Examples, spread
from mmbert.evaluation.measures import Measured
from mmbert.evaluation.question_answering import answer_records, evaluate_answers


class Options(BaseModel):
    """What is asked.

    Attributes:
        images: the images are looked at.
        limit: so many questions only, from the first.
    """

    model_config = ConfigDict(extra="forbid")
    images: bool = True
    limit: int | None = Field(default=None, ge=1)


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """Accuracy in percent: ``overall``, and of each kind of answer (``yes/no``, ``number``, ``other``)."""
    asked = records[: options.limit]
    report = evaluate_answers(model, asked, images=options.images)
    figures = {"overall": report["overall"], **report["answer_types"]}
    return Measured(report, figures, partial(_examples, model, asked, options.images))


def _examples(model: MMBert, records: Sequence[Record], images: bool) -> Examples:
    """Questions, what the model answers, and what people answered with the score of each answer."""
    chosen = [records[i] for i in spread(len(records))]
    answers = answer_records(model, chosen, images=images)
    rows = []
    for record in chosen:
        said = soft_scores(record.annotation["answers"]).items()
        right = ", ".join(f"{answer} ({score:.1f})" for answer, score in said)
        rows.append((record.annotation["question"], answers[record.annotation["question_id"]], right))
    return Examples(("question", "answer", "right"), rows)


def how(options: Options) -> str:
    """Which questions were asked, and how."""
    part = "all questions" if options.limit is None else f"the first {options.limit} questions"
    return part if options.images else f"{part}, without images"


def table(report: dict[str, Any]) -> list[str]:
    """Accuracy by kind of answer."""
    kinds = report["answer_types"]
    return [
        "| questions | overall | " + " | ".join(name or "(no kind)" for name in kinds) + " |",
        "|---|---|" + "---|" * len(kinds),
        f"| {report['questions']} | {report['overall']:.2f} | " + " | ".join(f"{v:.2f}" for v in kinds.values()) + " |",
    ]
