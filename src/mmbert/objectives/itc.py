"""Image-text contrast: the embeddings of a text and its image are nearer than all others in the step.

Texts and images of one group are all right answers of each other (Radford et al., 2021, with several positives).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext

READS = "sequences"


class Options(BaseModel):
    """``weight`` of the loss; ``label_smoothing`` spreads that share of each label evenly."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0
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


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Contrast both ways, averaged: texts over the images of the step, and images over its texts."""
    found = embed(step, target)
    step.shared[name] = found
    assert step.model.embedding_head is not None
    logits = step.model.embedding_head.scale * found.texts @ found.images.T
    positive = (found.text_groups[:, None] == found.image_groups[None, :]).float()
    texts, images = positive.any(1).sum(), positive.any(0).sum()
    to_image = soft_contrast(logits, positive, options.label_smoothing) / texts.clamp(min=1)
    to_text = soft_contrast(logits.T, positive.T, options.label_smoothing) / images.clamp(min=1)
    count = torch.stack([texts, images]).float().sum()
    hits = positive.gather(1, logits.argmax(1, keepdim=True)).sum() if len(found.images) else positive.sum()
    return LossTerm((to_image + to_text) / 2 * count, count, {"text_to_image": (hits, texts.float())})
