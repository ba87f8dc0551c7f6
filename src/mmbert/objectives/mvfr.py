"""Masked region feature regression: predict the features of hidden regions (Chen et al., 2020, UNITER's MRFR)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, exact

READS = "positions"
NEEDS = ("region features",)


class Options(ObjectiveOptions):
    """``weight`` of the loss."""


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Mean squared error to the region's own feature, standardised per region.

    ``target.labels`` [M] are base rows of the region table. The features are targets only: no gradient flows
    through them.
    """
    features = exact(step.output.regions.features.index_select(0, target.labels).detach())
    wanted = F.layer_norm(features, features.shape[-1:])
    predicted = exact(step.model.region_features(step.states(target.positions)))
    total = (predicted - wanted).pow(2).mean(-1).sum()
    return LossTerm(total, torch.tensor(float(len(target.labels)), device=total.device))
