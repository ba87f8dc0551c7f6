"""Image-text matching with hard negatives from the step itself. (``ttm_hard`` does the same for pairs of texts.)

Reads the embeddings that the contrast of the same component left; negatives are drawn in proportion to their
similarity (Li et al., 2021, ALBEF), so they are fresh at each step. The pairs run through the trunk in a second pass
that re-uses the embedded regions. On several processes pairs are drawn from the texts and images of all, the same ones
everywhere, and each process judges its share of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.packed import PackedBatch, RegionTable, SequenceSpec, Target, pack, paired
from mmbert.model.ranks import gather_objects, gather_rows, rank, world_size
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StepContext, counts, exact
from mmbert.objectives.itc import Embedded, groups_of

READS = "sequences"
NEEDS = ("match",)
BESIDE = "itc"
GATHERS = True
SHARPNESS = 10.0
"""Inverse temperature of the softmax over cosines that wrong sides are drawn from."""


class Options(ObjectiveOptions):
    """``weight``; ``pairs``: matching pairs per step; ``negatives``: wrong images (and wrong texts) for each.

    ``even``: share of the drawing that ignores similarity, which gives a fresh head something easy to begin with.
    ``wrong``: which side of a right pair is exchanged for a wrong one: both in turn, or the second (the image) only.
    """

    pairs: int = 64
    negatives: int = 1
    even: float = Field(default=0.0, ge=0, le=1)
    wrong: Literal["both", "second"] = "both"

    @property
    def wrong_ones(self) -> int:
        """Wrong pairs that a right one brings, where there are enough."""
        return self.negatives * (2 if self.wrong == "both" else 1)


@dataclass(frozen=True)
class Kind:
    """What pairs are made of.

    Attributes:
        contrast: the objective of the same component whose embeddings tell what is similar.
        second: key of its labels that says which sequences are second sides.
        join: makes one sequence of two.
    """

    contrast: str
    second: str
    join: Callable[[SequenceSpec, SequenceSpec], SequenceSpec]


WITH_IMAGES = Kind("itc", "is_image", paired)


@dataclass
class Everybody:
    """What all processes have to make pairs of, in order of the processes. (Of two texts the second is the "image".)

    Attributes:
        seed: of the drawing.
        text_groups, image_groups: on the CPU.
        texts, images: their sequences; rows refer to the extended region tables of all processes in a row.
    """

    seed: int
    text_groups: Tensor
    image_groups: Tensor
    texts: list[SequenceSpec]
    images: list[SequenceSpec]


def _contrast(name: str, kind: Kind) -> str:
    return f"{name.rsplit('/', 1)[0]}/{kind.contrast}"


def plan(
    batch: PackedBatch,
    target: Target,
    options: Options,
    name: str,
    states: Mapping[str, Any],
    kind: Kind = WITH_IMAGES,
) -> Plan:
    """Draw the right pairs; how many wrong ones they bring is known from the groups."""
    everybody = _everybody(batch, batch.targets.get(_contrast(name, kind)), kind)
    positive = everybody.text_groups[:, None] == everybody.image_groups[None, :]
    generator = torch.Generator().manual_seed(everybody.seed)
    right = _right(positive, options, generator)
    if not len(right):
        return Plan(counts(0), data=everybody)
    wrong_images, wrong_texts = _can_be_wrong(positive, right)
    wrong = int(wrong_images.sum()) + (int(wrong_texts.sum()) if options.wrong == "both" else 0)
    weight = options.wrong_ones * len(right) + options.negatives * wrong
    return Plan(counts(weight / world_size()), data=everybody)


def _everybody(batch: PackedBatch, contrast: Target | None, kind: Kind) -> Everybody:
    """Exchange sequences, groups and the first process's seed."""
    seed = int(torch.randint(2**62, ()))
    none = torch.zeros(0, dtype=torch.long)
    texts, images = none, none
    text_groups, image_groups = none, none
    if contrast is not None:
        is_image = contrast.extra[kind.second].bool()
        texts, images = contrast.positions[~is_image], contrast.positions[is_image]
        text_groups, image_groups = groups_of(contrast, kind.second)
    own = (
        seed,
        text_groups,
        image_groups,
        [batch.sequences[i] for i in texts.tolist()],
        [batch.sequences[i] for i in images.tolist()],
        batch.regions.extended_length if batch.regions is not None else 0,
    )
    found = gather_objects(own)
    everybody = Everybody(found[0][0], torch.cat([f[1] for f in found]), torch.cat([f[2] for f in found]), [], [])
    first_row = 0
    for _, _, _, their_texts, their_images, rows in found:
        everybody.texts += [_moved(spec, first_row) for spec in their_texts]
        everybody.images += [_moved(spec, first_row) for spec in their_images]
        first_row += rows
    return everybody


def _moved(spec: SequenceSpec, by: int) -> SequenceSpec:
    """The sequence with its table rows ``by`` further down."""
    if not by:
        return spec
    text, rows = np.asarray(spec.text_rows), np.asarray(spec.region_rows)
    moved = np.where(text < 0, text, text + by)
    return replace(spec, region_rows=np.where(rows < 0, rows, rows + by), text_rows=moved if text.ndim else int(moved))


def compute(step: StepContext, target: Target, options: Options, name: str, kind: Kind = WITH_IMAGES) -> LossTerm:
    """Choose matching pairs, ``negatives`` wrong images and wrong texts for each; per-anchor cross entropy.

    The loss is a binary cross entropy over all pairs.
    """
    found: Embedded | None = step.shared.get(f"{_contrast(name, kind)}/everybody")
    if found is None:
        raise ValueError(
            f"{name.rsplit('/', 1)[-1]} needs {kind.contrast} in the same component, named before it, with both sides"
        )
    if name not in step.plans:
        step.plans[name] = plan(step.batch, target, options, name, step.states_of_objectives, kind)
    everybody: Everybody = step.plans[name].data
    chosen = _choose(found, options, torch.Generator().manual_seed(everybody.seed))
    if chosen is None:
        zero = found.texts.sum() * 0
        return LossTerm(zero, zero.detach())
    texts, images, labels = (part[rank() :: world_size()] for part in chosen)
    regions, vectors = _regions(step)
    if not len(texts):
        zero = found.texts.sum() * 0 + (0 if vectors is None else vectors.sum() * 0)
        return LossTerm(zero, zero.detach())
    pairs = zip(texts.tolist(), images.tolist(), strict=True)
    specs = [kind.join(everybody.texts[t], everybody.images[i]) for t, i in pairs]
    joint = pack(specs, regions=regions, device=step.batch.device)
    pooled = step.model(joint, positions=joint.starts, region_vectors=vectors).pooled
    logits = exact(step.model.match_logits(pooled))
    labels = labels.to(logits.device)
    weights = torch.where(labels > 0.5, float(options.wrong_ones), 1.0)  # right pairs weigh as much as wrong ones
    total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight=weights, reduction="sum")
    right = ((logits > 0) == (labels > 0.5)).float()
    return LossTerm(total, weights.sum(), {"accuracy": ((right * weights).sum(), weights.sum())})


def _regions(step: StepContext) -> tuple[RegionTable | None, Tensor | None]:
    """The region table and its vectors, None in a batch of texts; on several processes those of all in a row."""
    vectors = step.output.region_vectors
    if world_size() == 1:
        return step.batch.regions, vectors
    states = step.output.last_hidden_state
    assert states is not None
    if vectors is None:
        vectors = states.new_zeros(0, step.model.config.visual_size)
    gathered = gather_rows(vectors + 0 * states.sum()).rows  # a gradient on every process, or else they wait for it
    return RegionTable(boxes=gathered.new_zeros(len(gathered), 4), sizes=gathered.new_ones(len(gathered), 2)), gathered


def _right(positive: Tensor, options: Options, generator: torch.Generator | None) -> Tensor:
    """[k, 2] text and image numbers of the right pairs that are drawn; none where there are no wrong ones."""
    right = positive.nonzero()
    if positive.all():
        return right[:0]
    return right[torch.randperm(len(right), generator=generator)[: options.pairs]]


def _can_be_wrong(positive: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """[k] whether there is a wrong image for the text of each right pair, and a wrong text for its image."""
    return ~positive[right[:, 0]].all(1), ~positive[:, right[:, 1]].all(0)


@torch.no_grad()
def _choose(
    found: Embedded, options: Options, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Text numbers, image numbers and labels [k]: positives, then wrong images, then wrong texts. On the CPU."""
    positive = (found.text_groups[:, None] == found.image_groups[None, :]).cpu()
    right = _right(positive, options, generator)
    if not len(right):
        return None
    similarity = (found.texts @ found.images.T).float().cpu() * SHARPNESS
    texts, images = right.unbind(1)
    can_image, can_text = _can_be_wrong(positive, right)
    wrong_images = _draw(similarity[texts[can_image]], positive[texts[can_image]], options, generator)
    if options.wrong == "second":
        can_text = torch.zeros_like(can_text)
    wrong_texts = _draw(similarity.T[images[can_text]], positive.T[images[can_text]], options, generator)
    anchors_t = texts[can_image].repeat_interleave(options.negatives)
    anchors_i = images[can_text].repeat_interleave(options.negatives)
    all_texts = torch.cat([texts, anchors_t, wrong_texts.flatten()])
    all_images = torch.cat([images, wrong_images.flatten(), anchors_i])
    labels = torch.zeros(len(all_texts))
    labels[: len(texts)] = 1
    return all_texts, all_images, labels


def _draw(similarity: Tensor, positive: Tensor, options: Options, generator: torch.Generator | None = None) -> Tensor:
    """[k, negatives] columns that are not ``positive``, for each row of [k, n].

    From a row that is not finite (the run diverges, and its loss says so) they are drawn evenly.
    """
    if not len(similarity):
        return torch.zeros(0, options.negatives, dtype=torch.long)
    similar = similarity.masked_fill(positive, float("-inf")).softmax(1)
    even = (~positive).float() / (~positive).sum(1, keepdim=True)
    chances = (1 - options.even) * similar + options.even * even
    chances = torch.where(chances.isfinite().all(1, keepdim=True), chances, even)
    return torch.multinomial(chances, options.negatives, replacement=True, generator=generator)
