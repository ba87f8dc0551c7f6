"""Finding the region that an expression means."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.evaluation.examples import Examples, picture_of, spread
from mmbert.evaluation.grounding import GroundingResult, evaluate_grounding
from mmbert.evaluation.measures import Measured
from mmbert.explain.grounding import grounding_picture


class Options(BaseModel):
    """``limit``: only the first so many expressions."""

    model_config = ConfigDict(extra="forbid")
    limit: int | None = Field(default=None, ge=1)


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """Accuracy, over all and as ``accuracy_SPLIT``."""
    result = evaluate_grounding(model, records[: options.limit])
    report = result.report
    by_split = {f"accuracy_{name}": one["accuracy"] for name, one in report["splits"].items() if name}
    return Measured(report, {"accuracy": report["accuracy"]} | by_split, partial(_examples, result))


def _examples(result: GroundingResult) -> Examples:
    """Expressions with the chosen and the right box, drawn where the image is at hand."""
    rows, pictures = [], {}
    for number, i in enumerate(spread(len(result.answers)), 1):
        answer = result.answers[i]
        expression, box = str(answer.record.annotation["expression"]), answer.record.annotation["box"]
        boxes = (", ".join(f"{edge:.0f}" for edge in edges) for edges in (answer.found.box, box))
        rows.append((str(number), expression, *boxes, f"{answer.overlap:.2f}", "yes" if answer.right else "no"))
        image = picture_of(answer.record.image)
        if image is not None:
            written = expression if expression.isascii() else f"{number}"
            pictures[f"expression_{number}"] = grounding_picture(image, answer.found, written, truth=box)
    return Examples(("", "expression", "chosen box", "right box", "overlap", "right"), rows, pictures)


def how(options: Options) -> str:
    """How many expressions."""
    return "all expressions" if options.limit is None else f"the first {options.limit} expressions"


def table(report: dict[str, Any]) -> list[str]:
    """A line for each split."""
    rows = ["| split | expressions | accuracy | possible | chance |", "|---|---|---|---|---|"]
    for name, one in report["splits"].items():
        shares = " | ".join(f"{100 * one[key]:.1f}" for key in ("accuracy", "possible", "chance"))
        rows.append(f"| {name or 'all'} | {one['expressions']} | {shares} |")
    return rows
