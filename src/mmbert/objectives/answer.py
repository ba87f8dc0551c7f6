"""Visual question answering: every answer is right to some degree (Teney et al., 2018: soft scores)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext, exact

READS = "positions"


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Binary cross entropy to the soft scores ``target.labels`` [M, A], summed over answers, at the [M] places."""
    logits = exact(step.model.head_logits("answer", step.states(target.positions)))
    total = F.binary_cross_entropy_with_logits(logits, target.labels.to(logits.dtype), reduction="sum")
    count = torch.tensor(float(len(target.labels)), device=total.device)
    scores = target.labels.gather(1, logits.argmax(1, keepdim=True)).sum().float()
    return LossTerm(total, count, {"score": (scores, count)})
