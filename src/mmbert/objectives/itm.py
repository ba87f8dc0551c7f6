"""Image-text matching: do this text and this image belong together? (Labels made by the task.)"""

from __future__ import annotations

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, binary_term

READS = "sequences"
NEEDS = ("match",)


class Options(ObjectiveOptions):
    """``weight`` of the loss."""


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Binary cross entropy of the match logit of the [M] sequences ``target.positions``.

    With a two-output head this equals its two-way cross entropy (the logit is the difference of the outputs).
    """
    assert step.output.pooled is not None
    return binary_term(step.model.match_logits(step.output.pooled.index_select(0, target.positions)), target.labels)
