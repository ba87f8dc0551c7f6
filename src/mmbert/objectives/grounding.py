"""Referring expressions: which regions does the expression mean?"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives.base import LossTerm, StepContext, exact

HEAD = "grounding"
NEEDS = (f"heads.{HEAD}",)


def reads(model: MMBertForPreTraining, batch: PackedBatch, target: Target) -> Tensor:
    """[S] positions whose states are read."""
    return model.places_read(HEAD, batch, target.positions)


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Binary cross entropy of the logit of each of the [M] regions to ``target.labels`` [M]."""
    logits = exact(step.model.logits_at(HEAD, step.batch, target.positions, step.states).squeeze(1))
    wanted = target.labels.to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    count = torch.tensor(float(len(wanted)), device=total.device)
    return LossTerm(total, count, {"accuracy": (((logits > 0) == (wanted > 0.5)).sum().float(), count)})
