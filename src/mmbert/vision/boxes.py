"""Geometry of boxes in images: overlap, and a grid of windows for images without given boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

WINDOW_PARTS = (2, 3, 4)
"""Windows are a half, a third and a quarter as wide and high as the image."""


def overlaps(boxes: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Intersection over union of each box with one.

    The corners are edges, not pixels that belong to the box: what the official tool of the RefCOCO corpora computes of
    x, y, width and height (Kazemzadeh et al., 2014).

    Args:
        boxes: [n, 4] x1, y1, x2, y2.
        box: the same of one.

    Returns:
        [n] float32 in 0..1.
    """
    rows = torch.from_numpy(np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
    one = torch.tensor([list(box)], dtype=torch.float64)
    return np.nan_to_num(box_iou(rows, one)[:, 0].float().numpy())  # a box of one pixel's corner has no area


def windows(width: int, height: int, parts: Sequence[int] = WINDOW_PARTS) -> np.ndarray:
    """[m, 4] windows over an image, half overlapping, of each size: (2 n - 1)² that are an n-th of its sides.

    Candidates for models that look into given boxes, where none are given.
    """
    found = []
    for part in parts:
        side = np.array([width, height], dtype=np.float32) / part
        steps = np.arange(2 * part - 1, dtype=np.float32) / 2
        top, left = np.meshgrid(steps * side[1], steps * side[0], indexing="ij")
        corners = np.stack([left, top], -1).reshape(-1, 2)
        found.append(np.concatenate([corners, corners + side], 1))
    return np.concatenate(found) if found else np.zeros((0, 4), dtype=np.float32)
