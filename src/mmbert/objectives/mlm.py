"""Masked language modelling: predict the hidden pieces of text (Devlin et al., 2019)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext

READS = "positions"


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over the vocabulary at [M] labelled positions only."""
    logits = step.model.token_logits(step.states(target.positions)).float()
    total = F.cross_entropy(logits, target.labels, reduction="sum")
    count = torch.tensor(float(len(target.labels)), device=total.device)
    right = (logits.argmax(-1) == target.labels).sum().float()
    return LossTerm(total, count, {"accuracy": (right, count)})
