"""Masked region classification: predict the class distribution of hidden regions (Su et al., 2020, VL-BERT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StepContext, exact, loss_term, plan_places

READS = "positions"
NEEDS = ("region classes", "class distributions")


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``per_sequence``: average within each sequence first."""

    per_sequence: bool = False


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Hidden regions with a distribution. Those that a vision encoder has yet to make are taken to be ones."""
    classes = None if batch.regions is None else batch.regions.classes
    valid = None if classes is None else _valid(classes.index_select(0, target.labels))
    return plan_places(batch, target, options.per_sequence, valid)


def _valid(distributions: Tensor) -> Tensor:
    return (distributions.sum(-1) - 1).abs() < 0.1


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Soft cross entropy against the detector's (or the backbone classifier's) distribution.

    ``target.labels`` [M] are base rows of the region table, whose distributions are the labels; a row counts only
    if its distribution sums to 1 within 0.1.
    """
    table = step.output.regions
    if table.classes is None:
        raise ValueError("mvrc needs region classes; choose the objective mvfr for encoders that give none")
    wanted = table.classes.index_select(0, target.labels).detach()
    valid = _valid(wanted)
    logits = exact(step.model.region_logits(step.states(target.positions)))
    losses = -(wanted * F.log_softmax(logits, dim=-1)).sum(-1)
    losses = torch.where(valid, losses, torch.zeros_like(losses))
    term = loss_term(step, target.positions, losses, valid.to(losses.dtype), options.per_sequence)
    right = ((logits.argmax(-1) == wanted.argmax(-1)) & valid).sum().float()
    count = valid.sum().float()
    term.metrics["accuracy"] = (right, count)
    return term
