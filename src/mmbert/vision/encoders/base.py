"""The interface of vision encoders: images in, regions (boxes, features, class distributions or None) out.

A new encoder is one module in this package with a function ``build(**options)``. It gives a :class:`RegionExtractor`
(a detector, say, whose regions are extracted once and stored) or a :class:`VisionEncoder`, which can also run inside
the model and be trained with it.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmbert.model.packed import RegionTable
from mmbert.vision.regions import Regions


class RegionExtractor(nn.Module):
    """Turns images of any size into regions; region 0 is always the whole image.

    Attributes:
        feature_size: F, numbers per region.
        identity: what made the regions: kind, options and a digest of the weights. A store keeps it, and a model
            refuses regions of another encoder.
    """

    feature_size: int
    options: Mapping[str, Any]
    """Keyword arguments of ``build`` that make an equal encoder (weights aside)."""

    @property
    def kind(self) -> str:
        """Name of the encoder's module in this package."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def identity(self) -> str:
        """``kind:digest``: equal for equal options and weights, on every machine."""
        known: str | None = self.__dict__.get("_fixed_identity")
        if known is not None:
            return known
        found = hashlib.blake2b(json.dumps(dict(self.options), sort_keys=True).encode(), digest_size=8)
        for name, tensor in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return f"{self.kind}:{found.hexdigest()}"

    @contextmanager
    def fixed_identity(self) -> Iterator[str]:
        """While this lasts the weights do not change, so that they are hashed once and not for each image."""
        self.__dict__["_fixed_identity"] = found = self.identity
        try:
            yield found
        finally:
            self.__dict__.pop("_fixed_identity", None)

    @abstractmethod
    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """Regions of RGB images, in their order, without gradients.

        An image gives the same regions alone and in any batch, up to rounding.
        """


class VisionEncoder(RegionExtractor):
    """Turns images of one fixed input size into regions, inside the model or ahead of it.

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

    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        return self.extract_prepared([self.prepare(image) for image in images], [image.size for image in images])

    @torch.inference_mode()
    def extract_prepared(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Regions]:
        """As :meth:`extract`, of RGB images that :meth:`prepare` has brought to the input size.

        Args:
            images: [3, S, S] uint8 each.
            sizes: width and height that each had before.
        """
        device = next(self.parameters()).device
        boxes = [self.boxes(*size) for size in sizes]
        rows = np.repeat(np.array(sizes, dtype=np.float32), self.regions_per_image, axis=0)
        table = RegionTable(torch.from_numpy(np.concatenate(boxes)).to(device), torch.from_numpy(rows).to(device))
        was_training = self.training
        self.eval()
        features, classes = self(torch.stack(list(images)).to(device), table)
        self.train(was_training)
        parts = features.float().cpu().split(self.regions_per_image)
        kinds = [None] * len(images) if classes is None else classes.float().cpu().split(self.regions_per_image)
        identity = self.identity
        return [
            Regions(box, part.numpy(), size, None if kind is None else kind.numpy(), identity)
            for size, box, part, kind in zip(sizes, boxes, parts, kinds, strict=True)
        ]

    def freeze(self) -> None:
        """Turn gradients off for whatever is not trained; called again when weights have been loaded."""

    def prepare(self, image: Image.Image) -> Tensor:
        """An image of any size to [bands, S, S] uint8, squashed to the square; RGB or RGBA as it comes."""
        resized = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
