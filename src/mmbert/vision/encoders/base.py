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
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmbert.model.packed import Pixels, RegionTable, map_tensors
from mmbert.vision.regions import GivenBoxes, Regions


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
        before = self.__dict__.get("_fixed_identity")
        self.__dict__["_fixed_identity"] = found = self.identity
        try:
            yield found
        finally:
            self.__dict__["_fixed_identity"] = before

    def quick(self) -> RegionExtractor:
        """An encoder in eval mode with this one's identity and, up to rounding, its regions, made for many images."""
        return self.eval()

    @abstractmethod
    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """Regions of RGB images, in their order, without gradients.

        An image gives the same regions alone and in any batch, up to rounding.
        """


class VisionEncoder(RegionExtractor):
    """Turns images into regions, inside the model or ahead of it.

    Where the boxes come from is the encoder's choice: from itself (a grid), or with the image (``takes_boxes``).

    Attributes:
        image_size: S, side of the square input in pixels, for encoders that squash images to one.
        feature_size: F, numbers per region.
        regions_per_image: regions that it makes by itself, whole image included; given boxes come on top.
        takes_boxes: it looks into boxes that come with an image; without any, the whole image is the only region.
        classes: it gives class distributions of all regions; one that takes boxes passes on those that come with them.
        blanks_hidden: hidden regions are blanked in the pixels, so that nothing that is made of them shows through.
    """

    image_size: int
    feature_size: int
    regions_per_image: int
    takes_boxes: bool = False
    classes: bool = False
    blanks_hidden: bool = False

    @abstractmethod
    def boxes(self, width: int, height: int) -> np.ndarray:
        """[n, 4] float32 boxes (x1, y1, x2, y2) that it makes by itself, in pixels of an image of that size."""

    def place(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """[m, 4] given boxes as the encoder sees them in an image of that size, in the image's pixels."""
        return boxes

    @abstractmethod
    def forward(self, pixels: Any, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        """Features of all regions of a batch.

        Args:
            pixels: I uint8 (0..255) or float (0..1) RGB images as :meth:`prepare` makes them: one tensor where they are
                of one size, else a list.
            table: the batch's region table, as :meth:`table` makes it.

        Returns:
            [N, F] features of the table's N rows, and [N, C] class distributions or None.
        """

    def table(
        self, sizes: Sequence[tuple[int, int]], given: Sequence[GivenBoxes | None] | None = None
    ) -> tuple[list[int], RegionTable]:
        """First row of each image (and one past the last), and the region table, features still to be made.

        Args:
            sizes: width and height of each image, pixels.
            given: boxes that come with each image; encoders without ``takes_boxes`` do without.
        """
        wanted: list[GivenBoxes | None] = [None] * len(sizes)
        if given is not None and self.takes_boxes:
            wanted = list(given)
        boxes = [
            np.concatenate([self.boxes(*size), *([] if g is None else [self.place(g.boxes, *size)])])
            for size, g in zip(sizes, wanted, strict=True)
        ]
        counts = [len(b) for b in boxes]
        table = RegionTable(
            boxes=torch.from_numpy(np.concatenate(boxes)),
            sizes=torch.from_numpy(np.repeat(np.array(sizes, dtype=np.float32), counts, axis=0)),
        )
        if self.takes_boxes:
            table.image_numbers = torch.from_numpy(np.repeat(np.arange(len(sizes)), counts))
            table.masks = _join([None if g is None else g.masks for g in wanted], counts, 1.0)
            table.classes = _join([None if g is None else g.classes for g in wanted], counts, 0.0)
            table.hidden = _join([None if g is None else g.hidden for g in wanted], counts, False)
        return np.cumsum([0, *counts]).tolist(), table

    def extract(self, images: Sequence[Image.Image], given: Sequence[GivenBoxes | None] | None = None) -> list[Regions]:
        """As in the base class; ``given`` are the boxes of each image for encoders that take boxes."""
        prepared, sizes = [self.prepare(image) for image in images], [image.size for image in images]
        return self.extract_prepared(prepared, sizes, given)

    @torch.inference_mode()
    def extract_prepared(
        self,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        given: Sequence[GivenBoxes | None] | None = None,
    ) -> list[Regions]:
        """As :meth:`extract`, of RGB images that :meth:`prepare` has brought to the input size.

        Args:
            images: [3, h, w] uint8 each.
            sizes: width and height that each had before.
            given: boxes of each image, for encoders that take boxes.
        """
        device = next(self.parameters()).device
        first_rows, table = self.table(sizes, given)
        pixels = [image.to(device) for image in images]
        was_training = self.training
        self.eval()
        features, classes = self(join_images(pixels), map_tensors(table, lambda tensor: tensor.to(device)))
        self.train(was_training)
        classes = table.classes if classes is None else classes
        rows, labels = features.float().cpu().numpy(), None if classes is None else classes.float().cpu().numpy()
        made_by = self.identity
        return [
            Regions(table.boxes[a:b].numpy(), rows[a:b], size, None if labels is None else labels[a:b], made_by)
            for size, (a, b) in zip(sizes, pairwise(first_rows), strict=True)
        ]

    def freeze(self) -> None:
        """Turn gradients off for parts that are not trained; called again after weights are loaded."""

    def prepare(self, image: Image.Image) -> Tensor:
        """An image of any size to [bands, S, S] uint8, squashed to the square; RGB or RGBA as it comes."""
        resized = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def join_images(images: Sequence[Tensor]) -> Pixels:
    """Images [bands, h, w] as one tensor where they are of one size, else as a list."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else list(images)


def _join(parts: Sequence[np.ndarray | None], counts: Sequence[int], fill: float | bool) -> Tensor | None:
    """What comes with the last rows of each image, for all rows of the table; None where no image has it.

    Args:
        parts: [m, ...] per image, for its m given boxes.
        counts: rows of each image.
        fill: value of the other rows.
    """
    first = next((part for part in parts if part is not None), None)
    if first is None:
        return None
    rows = np.full((sum(counts), *first.shape[1:]), fill, dtype=first.dtype)
    for end, part in zip(np.cumsum(counts).tolist(), parts, strict=True):
        if part is not None and len(part):
            rows[end - len(part) : end] = part
    return torch.from_numpy(rows)
