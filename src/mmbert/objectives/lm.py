"""Writing: predict each next piece of a text that continues a sequence (translation, captions)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext

READS = "positions"


class Options(BaseModel):
    """``weight`` of the loss; ``label_smoothing``: share of the label that goes to all words alike (Szegedy et al.,
    2016); ``train_table``: the tied decoder trains the word table.
    """

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    train_table: bool = True


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Smoothed cross entropy over the vocabulary at [M] written positions only.

    Metrics: ``accuracy``, and ``nll``, the cross entropy without smoothing.
    """
    logits = step.model.token_logits(step.states(target.positions), train_table=options.train_table).float()
    count = torch.tensor(float(len(target.labels)), device=logits.device)
    total = F.cross_entropy(logits, target.labels, reduction="sum", label_smoothing=options.label_smoothing)
    term = LossTerm(total, count)
    with torch.no_grad():
        right = logits.argmax(-1) == target.labels
        nll = F.cross_entropy(logits, target.labels, reduction="sum") if options.label_smoothing else total.detach()
    term.metrics = {"accuracy": (right.sum().float(), count), "nll": (nll, count)}
    return term
