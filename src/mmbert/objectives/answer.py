"""Visual question answering: every answer is right to some degree (Teney et al., 2018: soft scores)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.heads import is_exclusive
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, exact

HEAD = "answer"
NEEDS = (f"heads.{HEAD}",)


def reads(model: MMBertForPreTraining, batch: PackedBatch, target: Target) -> Tensor:
    """[S] positions whose states are read: the head may look around its place."""
    return model.places_read(HEAD, batch, target.positions)


class Options(ObjectiveOptions):
    """``weight`` of the loss."""


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Loss of the soft scores ``target.labels`` [M, A] at the [M] places.

    Binary cross entropy, summed over answers; or, where the head's answers exclude each other (``exclusive``), cross
    entropy to the scores, made to add up to 1 (Kazemi and Elqursh, 2017: the mean log likelihood of the given answers).
    A question without a right answer then has no loss.
    """
    logits = exact(step.model.logits_at(HEAD, step.batch, target.positions, step.states))
    wanted = target.labels.to(logits.dtype)
    if is_exclusive(step.model.config, HEAD):
        shares = wanted / wanted.sum(1, keepdim=True).clamp(min=torch.finfo(wanted.dtype).tiny)
        total = F.cross_entropy(logits, shares, reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    count = torch.tensor(float(len(target.labels)), device=total.device)
    scores = target.labels.gather(1, logits.argmax(1, keepdim=True)).sum().float()
    return LossTerm(total, count, {"score": (scores, count)})
