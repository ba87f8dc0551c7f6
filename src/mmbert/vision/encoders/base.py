"""The interface of a vision encoder: pixels in, one feature row per region out.

A new encoder is one module in this package with a function ``build(**options) -> VisionEncoder``.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmbert.model.packed import RegionTable


class VisionEncoder(nn.Module):
    """Turns images of one fixed input size into regions; region 0 is always the whole image.

    Attributes:
        image_size: S, side of the square input in pixels.
        feature_size: F, numbers per region.
        regions_per_image: n, whole image included.
    """

    image_size: int
    feature_size: int
    regions_per_image: int

    @abstractmethod
    def boxes(self, width: int, height: int) -> np.ndarray:
        """[n, 4] float32 boxes (x1, y1, x2, y2) in pixels of an image of that size."""

    @abstractmethod
    def forward(self, pixels: Tensor, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        """Features of all regions of a batch.

        Args:
            pixels: [I, 3, S, S] uint8 (0..255) or float (0..1) images, RGB.
            table: the batch's region table (I * n rows, image by image).

        Returns:
            [I * n, F] features, and [I * n, C] class distributions or None.
        """

    def freeze(self) -> None:
        """Turn gradients off for whatever is not trained; called again when weights have been loaded."""

    def prepare(self, image: Image.Image) -> Tensor:
        """An image of any size to [bands, S, S] uint8, squashed to the square; RGB or RGBA as it comes."""
        resized = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
