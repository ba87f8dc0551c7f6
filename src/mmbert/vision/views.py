"""Fixed views of an image: smaller, larger, turned either way. Their mean vector says more than the image's own.

Averaging over slightly changed copies is Krizhevsky et al., 2012, section 4.1 (they cut and mirror; here nothing is cut
off a smaller or turned copy but corners, and nothing is mirrored, since captions tell left from right).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

VIEWS = ((1.0, 0.0), (0.85, 0.0), (1.12, 0.0), (1.0, 8.0), (1.0, -8.0))
"""Size and degrees (counter-clockwise) of each view; the first is the image itself."""


def view_all(pixels: Tensor | list[Tensor], number: int) -> Tensor | list[Tensor]:
    """View ``number`` of images of one size (a tensor) or of several (a list of [3, h, w])."""
    if isinstance(pixels, list):
        return [view(image.unsqueeze(0), number)[0] for image in pixels]
    return view(pixels, number)


def view(pixels: Tensor, number: int) -> Tensor:
    """View ``number`` of a batch.

    Args:
        pixels: [I, 3, h, w] uint8 (0..255).
        number: place in ``VIEWS``.

    Returns:
        [I, 3, h, w] float in 0..1; white where the image does not reach. View 0 comes back as it is, in uint8.
    """
    size, degrees = VIEWS[number]
    if (size, degrees) == (1.0, 0.0):
        return pixels
    cos, sin = math.cos(math.radians(degrees)) / size, math.sin(math.radians(degrees)) / size
    tall = pixels.shape[2] / pixels.shape[3]  # places run from -1 to 1 both ways, whatever the shape
    turn = [[cos, -sin * tall, 0.0], [sin / tall, cos, 0.0]]
    places = torch.tensor(turn, device=pixels.device).expand(len(pixels), 2, 3)
    grid = F.affine_grid(places, list(pixels.shape), align_corners=False)
    return 1 - F.grid_sample(1 - pixels.float() / 255, grid, padding_mode="zeros", align_corners=False)
