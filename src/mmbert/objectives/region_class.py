"""What kind of thing is in a region, told from its final state? VCR's network is kept looking at the objects."""

from __future__ import annotations

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, classification_term

READS = "positions"
NEEDS = ("heads.region_class",)


class Options(ObjectiveOptions):
    """``weight`` of the loss."""


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy of the object classes ``target.labels`` [M] of the regions at ``target.positions`` [M]."""
    return classification_term(step.model.head_logits("region_class", step.states(target.positions)), target.labels)
