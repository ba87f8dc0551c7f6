"""Image-text contrast: the embeddings of a text and its image are nearer than all others in the step.

Texts and images of one group are all right answers of each other (Radford et al., 2021, with several positives).
On several processes the others are those of all processes: each compares its own texts and images with everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.packed import PackedBatch, Target
from mmbert.model.ranks import gather_rows
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StepContext, counts

READS = "sequences"
NEEDS = ("embeddings",)
GATHERS = True


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``label_smoothing`` spreads that share of each label evenly."""

    label_smoothing: float = 0.0


@dataclass
class Embedded:
    """Embeddings of a step: sequence numbers [n], unit vectors [n, D] and groups [n] of texts and of images."""

    text_sequences: Tensor
    texts: Tensor
    text_groups: Tensor
    image_sequences: Tensor
    images: Tensor
    image_groups: Tensor


def embed(step: StepContext, target: Target) -> Embedded:
    """Embed the sequences ``target.positions``; ``labels`` are groups, ``extra["is_image"]`` tells the kind."""
    head = step.model.embedding_head
    if head is None:
        raise ValueError("contrast needs a model with embedding_size > 0")
    is_image = target.extra["is_image"].bool()
    text_sequences, image_sequences = target.positions[~is_image], target.positions[is_image]
    return Embedded(
        text_sequences,
        head.embed_text(step.first_states(text_sequences)),
        target.labels[~is_image],
        image_sequences,
        head.embed_image(step.first_states(image_sequences)),
        target.labels[is_image],
    )


def soft_contrast(logits: Tensor, positive: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over rows of the cross entropy to an even spread over the row's positives; rows without one count 0."""
    has = positive.any(1)
    wanted = positive / positive.sum(1, keepdim=True).clamp(min=1)
    if smoothing:
        wanted = wanted * (1 - smoothing) + smoothing / wanted.shape[1]
    losses = -(wanted * F.log_softmax(logits, dim=1)).sum(1)
    return losses[has].sum()


def groups_of(target: Target, second: str = "is_image") -> tuple[Tensor, Tensor]:
    """Groups of this process's texts and of its images (of what the label ``second`` is true of), on the CPU."""
    is_image = target.extra[second].bool()
    return target.labels[~is_image].cpu(), target.labels[is_image].cpu()


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Texts that have an image anywhere in the batch (of all processes), and images that have a text."""
    texts, images = groups_of(target)
    every = [gather_rows(groups.to(batch.device)).rows.cpu() for groups in (texts, images)]
    found = torch.isin(texts, every[1]).sum(), torch.isin(images, every[0]).sum()
    return Plan(counts(sum(found), *found))


def everybodys(found: Embedded) -> Embedded:
    """Embeddings of all processes. (Sequence numbers: each process's own.)"""
    names = ("text_sequences", "texts", "text_groups", "image_sequences", "images", "image_groups")
    return Embedded(*(gather_rows(getattr(found, name)).rows for name in names))


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Contrast both ways, averaged: texts over the images of the step, and images over its texts."""
    found = embed(step, target)
    step.shared[name] = found
    every = step.shared[f"{name}/everybody"] = everybodys(found)
    if name not in step.plans:
        step.plans[name] = plan(step.batch, target, options, name, step.states_of_objectives)
    known = step.plans[name]
    assert step.model.embedding_head is not None
    scale = step.model.embedding_head.scale
    to_image = (found.text_groups[:, None] == every.image_groups[None, :]).float()
    to_text = (found.image_groups[:, None] == every.text_groups[None, :]).float()
    logits = scale * found.texts @ every.images.T
    by_text = soft_contrast(logits, to_image, options.label_smoothing)
    by_image = soft_contrast(scale * found.images @ every.texts.T, to_text, options.label_smoothing)
    total = (by_text / known.total(1) + by_image / known.total(2)) / 2 * known.total()
    texts, images = to_image.any(1).sum(), to_text.any(1).sum()
    hits = to_image.gather(1, logits.argmax(1, keepdim=True)).sum() if to_image.numel() else to_image.sum()
    return LossTerm(total, (texts + images).float(), {"text_to_image": (hits, texts.float())})
