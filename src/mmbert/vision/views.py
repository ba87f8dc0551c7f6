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


def view(pixels: Tensor, number: int) -> Tensor:
    """View ``number`` of a batch.

    Args:
        pixels: [I, 3, S, S] uint8 (0..255).
        number: place in ``VIEWS``.

    Returns:
        [I, 3, S, S] float in 0..1; white where the image does not reach. View 0 comes back as it is, in uint8.
    """
    size, degrees = VIEWS[number]
    if (size, degrees) == (1.0, 0.0):
        return pixels
    cos, sin = math.cos(math.radians(degrees)) / size, math.sin(math.radians(degrees)) / size
    places = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], device=pixels.device).expand(len(pixels), 2, 3)
    grid = F.affine_grid(places, list(pixels.shape), align_corners=False)
    return 1 - F.grid_sample(1 - pixels.float() / 255, grid, padding_mode="zeros", align_corners=False)
