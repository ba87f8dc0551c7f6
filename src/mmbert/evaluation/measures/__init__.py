"""What a training run can measure on its way: one module each, found by name (``retrieval``, ``translation``, …).

A module has ``Options`` (pydantic), ``measure(model, records, options) -> Measured`` and, for the model
card, ``how(options)`` in a few words and ``table(report)``, its lines. What was measured may show examples of the
model's answers. One that re-ranks may have ``tune(model, records, options)``, which gives the weights of match logit
and hubness for ``evaluation.tune_rerank``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbert.evaluation.examples import Show

LOWER_IS_BETTER = frozenset({"median_rank"})
"""Figures of which less is better, in whichever measure; of all others more is."""


def merit(figure: str, value: float) -> float:
    """A figure's value as a number of which more is better; the figure by its name, or as logs have it (``eval_…``)."""
    return -value if figure.removeprefix("eval_") in LOWER_IS_BETTER else value


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        report: everything, as it is stored beside a model.
        figures: numbers by name; the recipe names the one by which the best model is kept. Greater is better, but for
            those of :data:`LOWER_IS_BETTER`.
        show: makes examples of what the model answered, for TensorBoard.
    """

    report: dict[str, Any]
    figures: dict[str, float]
    show: Show | None = None
