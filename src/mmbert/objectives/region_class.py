"""What kind of thing is in a region, told from its final state? VCR's network is kept looking at the objects."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext

READS = "positions"
NEEDS = ("heads.region_class",)


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy of the object classes ``target.labels`` [M] of the regions at ``target.positions`` [M]."""
    logits = step.model.head_logits("region_class", step.states(target.positions)).float()
    labels = target.labels.long()
    total = F.cross_entropy(logits, labels, reduction="sum")
    count = torch.tensor(float(len(labels)), device=total.device)
    return LossTerm(total, count, {"accuracy": ((logits.argmax(-1) == labels).sum().float(), count)})
