"""Finding the region that an expression means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.evaluation.grounding import evaluate_grounding
from mmbert.evaluation.measures import Measured


class Options(BaseModel):
    """``limit``: so many expressions only, from the first."""

    model_config = ConfigDict(extra="forbid")
    limit: int | None = Field(default=None, ge=1)


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """Accuracy, over all and as ``accuracy_SPLIT``."""
    report = evaluate_grounding(model, records[: options.limit]).report
    by_split = {f"accuracy_{name}": one["accuracy"] for name, one in report["splits"].items() if name}
    return Measured(report, {"accuracy": report["accuracy"]} | by_split)


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
