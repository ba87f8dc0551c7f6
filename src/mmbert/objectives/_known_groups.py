"""What ``proxy`` and ``class_names`` share: texts and images of known groups are classified, each kind averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, Plan, StepContext, counts
from mmbert.objectives.itc import embed, groups_of

Classify = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""[n, D] unit vectors and the [n] rows of their groups to the sum of their losses, and how many are right."""


def rows_of(groups: Tensor, known: Tensor) -> Tensor:
    """Rows of [n] group numbers among the [G] sorted ``known`` ones; -1 for others."""
    if not len(known):
        return torch.full_like(groups, -1)
    rows = torch.searchsorted(known, groups).clamp(max=len(known) - 1)
    return torch.where(known[rows] == groups, rows, -1)


def plan_known(target: Target, known: Tensor) -> Plan:
    """The plan of :func:`known_term`: texts and images, and how many of each are of a known group."""
    return Plan(counts(len(target.labels), *(torch.isin(groups, known.cpu()).sum() for groups in groups_of(target))))


def known_term(
    step: StepContext, target: Target, name: str, known: Tensor, classify: Classify, image_weight: float
) -> LossTerm:
    """The mean loss of the texts, and ``image_weight`` times that of the images; of known groups only.

    Args:
        step, target, name: as of ``compute``.
        known: [G] sorted numbers of the groups.
        classify: the loss of each kind.
        image_weight: of images against texts.
    """
    found = embed(step, target)
    if name not in step.plans:
        step.plans[name] = plan_known(target, known)
    planned = step.plans[name]
    total = found.texts.sum() * 0.0 + found.images.sum() * 0.0
    metrics = {}
    parts = (("text", found.texts, found.text_groups, 1.0), ("image", found.images, found.image_groups, image_weight))
    for number, (kind, vectors, groups, weight) in enumerate(parts, start=1):
        rows = rows_of(groups, known)
        counted = rows >= 0
        if not bool(counted.any()):
            continue
        loss, right = classify(vectors[counted], rows[counted])
        total = total + weight * loss / planned.total(number) * planned.total()
        metrics[kind] = (right, counted.sum().float())
    return LossTerm(total, torch.tensor(float(len(target.labels)), device=total.device), metrics)
