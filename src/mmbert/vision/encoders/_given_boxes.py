"""What encoders share that look into given boxes: images by size, boxes in input pixels, cut-outs, and their means."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from mmbert.model.packed import Pixels, RegionTable

ALIGNED_SIDE = 7
"""Bins per side that a box is cut into on a feature map."""


def of_one_size(pixels: Pixels) -> list[list[int]]:
    """Numbers of the images of each size, in ascending order."""
    if isinstance(pixels, Tensor):
        return [list(range(len(pixels)))]
    sizes: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(pixels):
        sizes.setdefault(image.shape, []).append(number)
    return list(sizes.values())


def boxes_in_input(table: RegionTable, rows: Tensor, height: int, width: int) -> Tensor:
    """[n, 4] boxes of some rows of the table, in pixels of an input of that size."""
    boxes = table.boxes[rows]
    if table.pixel_ratios is not None:
        return boxes * table.pixel_ratios[rows].repeat(1, 2)
    size = torch.tensor([width, height], dtype=boxes.dtype, device=boxes.device)
    return boxes * (size / table.sizes[rows]).repeat(1, 2)


def unit_pixels(images: Tensor) -> Tensor:
    """[..., 3, h, w] uint8 (0..255) or float (0..1) as float in 0..1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def squashed(pixels: Pixels, side: int) -> Tensor:
    """[I, 3, side, side] float in 0..1: whole images at the encoder's size."""
    if isinstance(pixels, Tensor) and pixels.shape[2:] == (side, side):
        return unit_pixels(pixels)
    options = {"size": (side, side), "mode": "bicubic", "antialias": True}
    made = [F.interpolate(unit_pixels(image).unsqueeze(0), **options) for image in pixels]  # type: ignore[arg-type]
    return torch.cat(made).clamp(0, 1)


def cut_pixels(pixels: Pixels, table: RegionTable, rows: Tensor, side: int) -> Tensor:
    """The pixels inside of boxes, each brought to the encoder's size.

    Args:
        pixels: the images.
        table: says of which image each row is (``image_numbers``).
        rows: [n] numbers of the rows, ascending.
        side: of the cut-outs.

    Returns:
        [n, 3, side, side] float in 0..1; every pixel of a bin counts, so that nothing is lost where a box is large.
    """
    assert table.image_numbers is not None
    numbers = table.image_numbers[rows]
    found = table.boxes.new_zeros((len(rows), 3, side, side), dtype=torch.float32)
    for group in of_one_size(pixels):
        wanted = torch.tensor(group, device=numbers.device)
        mine = torch.isin(numbers, wanted).nonzero().squeeze(1)
        if not len(mine):
            continue
        images = unit_pixels(torch.stack([pixels[number] for number in group]))
        boxes = boxes_in_input(table, rows[mine], images.shape[2], images.shape[3])
        found[mine] = _aligned(images, boxes, torch.searchsorted(wanted, numbers[mine]), side)
    return found


def cut_maps(maps: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
    """RoIAlign (He et al., 2017, with the half-pixel shift) of boxes on feature maps.

    Args:
        maps: [I, C, rows, columns].
        boxes: [n, 4] x1, y1, x2, y2 in cells of the map.
        images: [n] which map each is on.

    Returns:
        [n, bins, C], bins row by row.
    """
    return _aligned(maps, boxes, images, ALIGNED_SIDE).flatten(2).transpose(1, 2)


def _aligned(maps: Tensor, boxes: Tensor, images: Tensor, side: int) -> Tensor:
    """[n, C, side, side]; half precision would move boxes by whole pixels."""
    exact = torch.promote_types(maps.dtype, torch.float32)
    rois = torch.cat([images.to(exact).unsqueeze(1), boxes.to(exact)], dim=1)
    cut: Tensor = roi_align(maps.to(exact), rois, (side, side), 1.0, sampling_ratio=0, aligned=True)
    return cut.to(maps.dtype)


def covered_mean(cells: Tensor, shape: tuple[int, int], masks: Tensor | None) -> Tensor:
    """Mean over what the object covers of each box.

    Args:
        cells: [n, rows * columns, F] of the boxes.
        shape: rows and columns.
        masks: [n, m, m] share of each cell of the box that the object covers; None: all of it. A mask without any
            counts as one of the whole box.

    Returns:
        [n, F].
    """
    if masks is None:
        return cells.mean(1)
    weights = F.adaptive_avg_pool2d(masks.unsqueeze(1).float(), shape).flatten(1)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    weights = weights / weights.sum(1, keepdim=True)
    return (cells * weights.unsqueeze(2).to(cells.dtype)).sum(1)
