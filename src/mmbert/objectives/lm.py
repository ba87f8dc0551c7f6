"""Writing: predict each next piece of a text that continues a sequence (translation, captions)."""

from __future__ import annotations

import torch
from pydantic import Field

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext

READS = "positions"
NEEDS = ("tokens",)


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``label_smoothing``: share of the label that goes to all words alike (Szegedy et al.,
    2016); ``train_table``: the tied decoder trains the word table.
    """

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    train_table: bool = True


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Smoothed cross entropy over the vocabulary at [M] written positions only, in chunks of them.

    Metrics: ``accuracy``, and ``nll``, the cross entropy without smoothing.
    """
    states = step.states(target.positions)
    ones = torch.ones(len(target.labels), device=states.device)
    total, right, nll = step.model.token_loss(
        states, target.labels, ones, train_table=options.train_table, smoothing=options.label_smoothing
    )
    count = ones.sum()
    return LossTerm(total, count, {"accuracy": (right, count), "nll": (nll.detach(), count)})
