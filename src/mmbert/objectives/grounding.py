"""Referring expressions: which regions does the expression mean?"""

from __future__ import annotations

from torch import Tensor

from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, binary_term

HEAD = "grounding"
NEEDS = (f"heads.{HEAD}",)


def reads(model: MMBertForPreTraining, batch: PackedBatch, target: Target) -> Tensor:
    """[S] positions whose states are read."""
    return model.places_read(HEAD, batch, target.positions)


class Options(ObjectiveOptions):
    """``weight`` of the loss."""


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Binary cross entropy of the logit of each of the [M] regions to ``target.labels`` [M]."""
    logits = step.model.logits_at(HEAD, step.batch, target.positions, step.states).squeeze(1)
    return binary_term(logits, target.labels)
