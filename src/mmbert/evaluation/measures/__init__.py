"""What a training run can measure on its way: one module each, found by name (``retrieval``, ``translation``, …).

A module has ``Options`` (pydantic), ``measure(model, records, options) -> Measured`` and, for the model
card, ``how(options)`` in a few words and ``table(report)``, its lines. What was measured may show examples of the
model's answers. One that re-ranks may have ``tune(model, records, options)``, which gives the weights of match logit
and hubness for ``evaluation.tune_rerank``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmbert.evaluation.examples import Show


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        report: everything, as it is stored beside a model.
        figures: numbers by name; the recipe names the one by which the best model is kept (greater is better).
        show: makes examples of what the model answered, for TensorBoard.
    """

    report: dict[str, Any]
    figures: dict[str, float]
    show: Show | None = None
