"""What kind of thing is in a region, told from its feature alone? A regulariser of vision encoders that are trained
with the rest (Zellers et al., 2019: their detector goes on classifying)."""

from __future__ import annotations

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, classification_term

READS = "regions"
NEEDS = ("heads.feature_class",)


class Options(ObjectiveOptions):
    """``weight`` of the loss."""


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over object classes of [M] rows of the region table (``target.positions``).

    ``target.labels`` [M] are the classes.
    """
    features = step.output.regions.features.index_select(0, target.positions)
    return classification_term(step.model.head_logits("feature_class", features), target.labels)
