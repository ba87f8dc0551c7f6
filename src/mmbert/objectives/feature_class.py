"""What kind of thing is in a region, told from its feature alone? A regulariser of vision encoders that are trained
with the rest (Zellers et al., 2019: their detector goes on classifying)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext

READS = "regions"
NEEDS = ("heads.feature_class",)


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over object classes of [M] rows of the region table (``target.positions``).

    ``target.labels`` [M] are the classes.
    """
    features = step.output.regions.features.index_select(0, target.positions)
    logits = step.model.head_logits("feature_class", features).float()
    labels = target.labels.long()
    total = F.cross_entropy(logits, labels, reduction="sum")
    count = torch.tensor(float(len(labels)), device=total.device)
    return LossTerm(total, count, {"accuracy": ((logits.argmax(-1) == labels).sum().float(), count)})
