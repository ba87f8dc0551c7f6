"""The originals' padded inputs as packed batches: boxes [B, N, 4 + F] padded with -2, token ids [B, L] with 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmbert.model.packed import NO_IMAGE, PackedBatch, RegionTable, SequenceSpec, Target, pack

PADDED_BOX = -0.5
"""A box whose y2 is not above this is padding (-2, in VCR -1)."""


def valid_boxes(boxes: Tensor) -> Tensor:
    """[B, N] which boxes are no padding."""
    return boxes[:, :, 3] > PADDED_BOX


@dataclass
class _Images:
    """The images of a padded batch.

    Attributes:
        base: table rows of each image.
        used: the same, hidden regions being their masked copies.
        table: the region table.
    """

    base: list[np.ndarray]
    used: list[np.ndarray]
    table: RegionTable


def pack_padded(
    text: Tensor,
    *,
    boxes: Tensor | None = None,
    sizes: Tensor | None = None,
    pixels: Tensor | None = None,
    box_masks: Tensor | None = None,
    image_of: Sequence[int] | None = None,
    ties: Tensor | None = None,
    segments: Tensor | None = None,
    masked: Tensor | None = None,
    blank_masked: bool = False,
    region_classes: Tensor | None = None,
    token_labels: Mapping[str, Tensor] | None = None,
    sequence_labels: Mapping[str, Tensor] | None = None,
    region_labels: Mapping[str, Tensor] | None = None,
    text_only: Tensor | None = None,
) -> PackedBatch:
    """Pack padded tensors.

    Args:
        text: [B, L] ids; a zero inside a row vanishes from the sequence, as in the originals.
        boxes: [I, N, 4 + F] boxes with features; None for text alone.
        sizes: [I, 2 or more] width and height of the images.
        pixels: [I, 3, H, W] images of end-to-end networks; padding is seen as part of them, as in the originals.
        box_masks: [I, N, m, m] instance masks.
        image_of: image of each row of text; None: row i reads image i.
        ties: [B, L] number of the box that each token is tied to; 0 (the whole image) everywhere where None.
        segments: [B, L] segment ids; 0 everywhere where None.
        masked: [I, N] non-zero where a region is hidden.
        blank_masked: hidden regions are blanked in the pixels, not replaced by a learned feature.
        region_classes: [I, N, C] class distributions; every valid box becomes a place of the target ``mvrc``.
        token_labels: target name to [B + B', L] labels, -1 where there is none (rows of ``text_only`` last).
        sequence_labels: target name to [B, ...] labels of the sequences.
        region_labels: target name to [I, N] labels of the valid boxes, in every sequence that reads them.
        text_only: [B', L'] further rows without an image.
    """
    images = None
    if boxes is not None:
        assert sizes is not None
        images = _images(boxes, sizes, None if blank_masked else masked)
        valid = valid_boxes(boxes)
        images.table.classes = None if region_classes is None else region_classes[valid]
        images.table.masks = None if box_masks is None else box_masks[valid]
        if pixels is not None:
            images.table.image_numbers = valid.nonzero()[:, 0]
            images.table.pixel_ratios = torch.ones(len(images.table), 2)
            images.table.hidden = masked[valid] > 0 if blank_masked and masked is not None else None
    image_of = range(len(text)) if image_of is None else image_of
    specs = []
    for number, ids in enumerate(text):
        kept = ids > 0
        kinds = 0 if segments is None else segments[number][kept].numpy()
        if images is None:
            specs.append(SequenceSpec(ids[kept].numpy(), kinds, NO_IMAGE))
            continue
        image = image_of[number]
        hidden = None if masked is None else (masked[image] > 0)[valid[image]].numpy()
        here = images.used[image]
        tied = int(here[0]) if ties is None else here[ties[number][kept].numpy()]
        specs.append(SequenceSpec(ids[kept].numpy(), kinds, tied, here, hidden))
    if text_only is not None:
        specs += [SequenceSpec(ids[ids > 0].numpy(), 0, NO_IMAGE) for ids in text_only]
    starts = np.cumsum([0, *(len(s) for s in specs)])
    targets: dict[str, Target] = {}
    for name, labels in (token_labels or {}).items():
        # A label's column counts vanished zeros too; they stand behind it in all that the originals read.
        row, column = (labels != -1).nonzero(as_tuple=True)
        targets[name] = Target("mlm", torch.from_numpy(starts)[row] + column, labels[row, column])
    for name, labels in (sequence_labels or {}).items():
        targets[name] = Target(name, torch.arange(len(labels)), labels)
    if images is not None:
        read = [image_of[number] for number in range(len(text))]
        places = torch.from_numpy(
            np.concatenate(
                [starts[n] + len(specs[n].token_ids) + np.arange(len(images.base[i])) for n, i in enumerate(read)]
            )
        )
        if region_classes is not None:
            targets["mvrc"] = Target("mvrc", places, torch.from_numpy(np.concatenate([images.base[i] for i in read])))
        for name, labels in (region_labels or {}).items():
            targets[name] = Target(name, places, torch.cat([labels[i][valid[i]] for i in read]))
    return pack(specs, regions=None if images is None else images.table, pixels=pixels, targets=targets)


def _images(boxes: Tensor, sizes: Tensor, masked: Tensor | None) -> _Images:
    """The region table of valid boxes, hidden ones (``masked``) as masked copies."""
    valid = valid_boxes(boxes)
    counts = valid.sum(1)
    ends = counts.cumsum(0).tolist()
    rows = [np.arange(end - int(count), end) for end, count in zip(ends, counts, strict=True)]
    flat = boxes[valid]
    hidden = None if masked is None else (masked[valid] > 0).nonzero().squeeze(1)
    table = RegionTable(
        boxes=flat[:, :4],
        sizes=sizes[:, :2].repeat_interleave(counts, 0),
        features=flat[:, 4:] if flat.shape[1] > 4 else None,
        masked_rows=hidden if hidden is not None and len(hidden) else None,
    )
    used = np.arange(len(flat))
    if hidden is not None and len(hidden):
        used[hidden.numpy()] = len(flat) + np.arange(len(hidden))
    return _Images(rows, [used[r] for r in rows], table)
