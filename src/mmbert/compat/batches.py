"""The originals' padded inputs as packed batches: boxes [B, N, 4 + F] padded with -2, token ids [B, L] with 0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmbert.model.packed import NO_IMAGE, PackedBatch, RegionTable, SequenceSpec, Target, pack

PADDED_BOX = -1.5
"""A box whose x1 is not above this is padding."""


def valid_boxes(boxes: Tensor) -> Tensor:
    """[B, N] which boxes are no padding."""
    return boxes[:, :, 0] > PADDED_BOX


def pack_padded(
    text: Tensor,
    *,
    boxes: Tensor | None = None,
    sizes: Tensor | None = None,
    segments: Tensor | None = None,
    masked: Tensor | None = None,
    region_classes: Tensor | None = None,
    token_labels: Mapping[str, Tensor] | None = None,
    sequence_labels: Mapping[str, Tensor] | None = None,
    region_labels: Mapping[str, Tensor] | None = None,
    text_only: Tensor | None = None,
) -> PackedBatch:
    """Pack padded tensors.

    Args:
        text: [B, L] ids; a zero inside a row vanishes from the sequence, as in the originals.
        boxes: [B, N, 4 + F] boxes with features; None for text alone.
        sizes: [B, 2 or more] width and height of the images.
        segments: [B, L] segment ids; 0 everywhere where None.
        masked: [B, N] non-zero where a region is hidden.
        region_classes: [B, N, C] class distributions; every valid box becomes a place of the target ``mvrc``.
        token_labels: target name to [B + B', L] labels, -1 where there is none (rows of ``text_only`` last).
        sequence_labels: target name to [B, ...] labels of the sequences.
        region_labels: target name to [B, N] labels of the valid boxes.
        text_only: [B', L'] further rows without an image.
    """
    rows, table, extended = _regions(boxes, sizes, masked, region_classes)
    specs = []
    for number, ids in enumerate(text):
        kept = ids > 0
        kinds = 0 if segments is None else segments[number][kept].numpy()
        if table is None:
            specs.append(SequenceSpec(ids[kept].numpy(), kinds, NO_IMAGE))
            continue
        hidden = None if masked is None else (masked[number] > 0)[valid_boxes(boxes)[number]].numpy()  # type: ignore[arg-type]
        here = extended[number]
        specs.append(SequenceSpec(ids[kept].numpy(), kinds, int(here[0]), here, hidden))
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
    places = torch.from_numpy(
        np.concatenate([starts[i] + len(specs[i].token_ids) + np.arange(len(r)) for i, r in enumerate(rows)])
        if rows
        else np.zeros(0, dtype=np.int64)
    )
    if region_classes is not None:
        targets["mvrc"] = Target("mvrc", places, torch.from_numpy(np.concatenate(rows)))
    for name, labels in (region_labels or {}).items():
        assert boxes is not None
        targets[name] = Target(name, places, labels[valid_boxes(boxes)])
    return pack(specs, regions=table, targets=targets)


def _regions(
    boxes: Tensor | None, sizes: Tensor | None, masked: Tensor | None, classes: Tensor | None
) -> tuple[list[np.ndarray], RegionTable | None, list[np.ndarray]]:
    """Base rows of each image, the table, and rows of each image in which hidden regions are masked copies."""
    if boxes is None:
        return [], None, []
    assert sizes is not None
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
        classes=None if classes is None else classes[valid],
        masked_rows=hidden if hidden is not None and len(hidden) else None,
    )
    used = np.arange(len(flat))
    if hidden is not None and len(hidden):
        used[hidden.numpy()] = len(flat) + np.arange(len(hidden))
    return rows, table, [used[r] for r in rows]
