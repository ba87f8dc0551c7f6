"""Image-text matching with hard negatives from the step itself.

Reads the embeddings that the contrast of the same component left; negatives are drawn in proportion to their
similarity (Li et al., 2021, ALBEF), so they are fresh at each step. The pairs run through the trunk in a second pass
that re-uses the embedded regions.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.packed import Target, pack, paired
from mmbert.objectives.base import LossTerm, StepContext
from mmbert.objectives.itc import Embedded

READS = "sequences"


class Options(BaseModel):
    """``weight``; ``pairs``: matching pairs per step; ``negatives``: wrong images (and wrong texts) for each.

    ``even``: share of the drawing that ignores similarity, which gives a fresh head something easy to begin with.
    """

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0
    pairs: int = 64
    negatives: int = 1
    even: float = Field(default=0.0, ge=0, le=1)


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Choose matching pairs, ``negatives`` wrong images and wrong texts for each; per-anchor cross entropy.

    The loss is a binary cross entropy over all pairs.
    """
    found: Embedded | None = step.shared.get(name.rsplit("/", 1)[0] + "/itc")
    if found is None:
        raise ValueError("itm_hard needs itc in the same component, named before it")
    chosen = _choose(found, options)
    if chosen is None:
        zero = found.texts.sum() * 0
        return LossTerm(zero, zero.detach())
    texts, images, labels = chosen
    sequences = step.batch.sequences
    text_numbers, image_numbers = found.text_sequences.tolist(), found.image_sequences.tolist()
    specs = [
        paired(sequences[text_numbers[t]], sequences[image_numbers[i]])
        for t, i in zip(texts.tolist(), images.tolist(), strict=True)
    ]
    joint = pack(specs, regions=step.batch.regions, device=step.batch.device)
    pooled = step.model(joint, positions=joint.starts, region_vectors=step.output.region_vectors).pooled
    logits = step.model.match_logits(pooled).float()
    weights = torch.where(labels > 0.5, float(2 * options.negatives), 1.0)  # right pairs weigh as much as wrong ones
    total = F.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum")
    right = ((logits > 0) == (labels > 0.5)).float()
    return LossTerm(total, weights.sum(), {"accuracy": ((right * weights).sum(), weights.sum())})


@torch.no_grad()
def _choose(found: Embedded, options: Options) -> tuple[Tensor, Tensor, Tensor] | None:
    """Text numbers, image numbers and labels [k]: positives, then wrong images, then wrong texts."""
    positive = found.text_groups[:, None] == found.image_groups[None, :]
    right = positive.nonzero()
    if not len(right) or positive.all():
        return None
    right = right[torch.randperm(len(right), device="cpu").to(right.device)[: options.pairs]]
    similarity = (found.texts @ found.images.T).float() * 10
    texts, images = right.unbind(1)
    can_image = ~positive[texts].all(1)
    can_text = ~positive[:, images].all(0)
    wrong_images = _draw(similarity[texts[can_image]], positive[texts[can_image]], options)
    wrong_texts = _draw(similarity.T[images[can_text]], positive.T[images[can_text]], options)
    anchors_t = texts[can_image].repeat_interleave(options.negatives)
    anchors_i = images[can_text].repeat_interleave(options.negatives)
    all_texts = torch.cat([texts, anchors_t, wrong_texts.flatten()])
    all_images = torch.cat([images, wrong_images.flatten(), anchors_i])
    labels = torch.zeros(len(all_texts), device=all_texts.device)
    labels[: len(texts)] = 1
    return all_texts, all_images, labels


def _draw(similarity: Tensor, positive: Tensor, options: Options) -> Tensor:
    """[k, negatives] columns that are not ``positive``, for each row of [k, n]."""
    similar = similarity.masked_fill(positive, float("-inf")).softmax(1)
    even = (~positive).float() / (~positive).sum(1, keepdim=True)
    chances = (1 - options.even) * similar + options.even * even
    return torch.multinomial(chances, options.negatives, replacement=True)
