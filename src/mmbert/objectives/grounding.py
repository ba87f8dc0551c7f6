"""Referring expressions: which regions does the expression mean?"""

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
    """Binary cross entropy of the logit of each of the [M] regions to ``target.labels`` [M]."""
    logits = exact(step.model.head_logits("grounding", step.states(target.positions)).squeeze(1))
    wanted = target.labels.to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    count = torch.tensor(float(len(wanted)), device=total.device)
    return LossTerm(total, count, {"accuracy": (((logits > 0) == (wanted > 0.5)).sum().float(), count)})
