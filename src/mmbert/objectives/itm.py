"""Image-text matching: do this text and this image belong together? (Labels made by the task.)"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext, exact

READS = "sequences"
NEEDS = ("match",)


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Binary cross entropy of the match logit of the [M] sequences ``target.positions``.

    With a two-output head this equals its two-way cross entropy (the logit is the difference of the outputs).
    """
    assert step.output.pooled is not None
    logits = exact(step.model.match_logits(step.output.pooled.index_select(0, target.positions)))
    wanted = target.labels.to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    count = torch.tensor(float(len(wanted)), device=total.device)
    return LossTerm(total, count, {"accuracy": (((logits > 0) == (wanted > 0.5)).sum().float(), count)})
