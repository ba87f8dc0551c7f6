"""Images of a batch: decoded once, kept small in memory, turned into pixels or looked up as features.

Stands between records (which only name images) and collation (which needs a region table).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmbert.data.records import ImageRef
from mmbert.errors import ImageError
from mmbert.model.packed import RegionTable
from mmbert.vision.encoders.base import VisionEncoder
from mmbert.vision.images import load_image

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class OpenedImage:
    """An image that is in memory already; stands wherever an ``ImageRef`` does."""

    image: Image.Image
    key: str


def identity(image: ImageRef | OpenedImage) -> str:
    """What makes two references the same image: the file they name, else their key (else the encoded bytes).

    A key alone would not do: pictures of two folders may have the same name.
    """
    if isinstance(image, OpenedImage):
        return f"key:{image.key or id(image.image)}"
    if image.path is not None:
        return f"path:{image.path}"
    return f"key:{image.key}" if image.key else f"data:{hashlib.blake2b(image.data or b'').hexdigest()}"


def at_record(error: ImageError, path: str | Path | None, where: str) -> ImageError:
    """The same error at a record's place (file and line); the message then says which image file it is about.

    Args:
        path: the image's file, if it has one.
        where: the place; "" keeps that of the error.
    """
    if not where:
        return error
    name = "" if path is None else Path(path).name
    message = error.message if not name or where.endswith(name) else f"{name}: {error.message}"
    return ImageError(message, where=where, hint=error.hint)


class PixelInput:
    """Images as pixels for a vision encoder that runs inside the model.

    Args:
        encoder: tells the input size and the boxes.
        augment: turns [I, 4, S, S] uint8 RGBA into [I, 3, S, S] float in 0..1; None composites onto white.
        cache_bytes: decoded images kept in memory, least recently used thrown out first;
            0 keeps none (then a file that changes is read anew).
    """

    def __init__(
        self, encoder: VisionEncoder, *, augment: Augmentation | None = None, cache_bytes: int = 1_000_000_000
    ) -> None:
        self.encoder = encoder
        self.augment = augment
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, tuple[Tensor, tuple[int, int]]] = OrderedDict()
        self._held = 0

    def table(
        self, images: Sequence[ImageRef | OpenedImage], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Tensor]:
        """First rows, base table (features still to be made) and pixels of ``images``.

        Args:
            images: distinct images.
            rng: randomness of the augmentation; None leaves the images as they are.
        """
        loaded = [self._load(image) for image in images]
        per_image = self.encoder.regions_per_image
        boxes = np.concatenate([self.encoder.boxes(*size) for _, size in loaded])
        sizes = np.repeat(np.array([size for _, size in loaded], dtype=np.float32), per_image, axis=0)
        table = RegionTable(boxes=torch.from_numpy(boxes), sizes=torch.from_numpy(sizes))
        first_rows = list(range(0, per_image * len(images) + 1, per_image))
        return first_rows, table, self._pixels(torch.stack([pixels for pixels, _ in loaded]), rng)

    def count(self, image: ImageRef | OpenedImage) -> int:
        """Regions of an image."""
        return self.encoder.regions_per_image

    def _pixels(self, rgba: Tensor, rng: np.random.Generator | None) -> Tensor:
        if self.augment is not None and rng is not None:
            return self.augment(rgba, torch.Generator().manual_seed(int(rng.integers(2**62))))
        colour, alpha = rgba[:, :3].float(), rgba[:, 3:].float() / 255
        return (colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8)

    def _load(self, image: ImageRef | OpenedImage) -> tuple[Tensor, tuple[int, int]]:
        name = identity(image)
        found = self._cache.get(name)
        if found is not None:
            self._cache.move_to_end(name)
            return found
        opened = load_image(image.image if isinstance(image, OpenedImage) else image, keep_alpha=True)
        made = (self.encoder.prepare(opened), opened.size)
        if not self.cache_bytes:
            return made
        self._cache[name] = made
        self._held += made[0].nbytes
        while self._held > self.cache_bytes and len(self._cache) > 1:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._held -= dropped.nbytes
        return made


class ImageInput(Protocol):
    """What tasks and collation ask of the images of a batch (``PixelInput`` and ``RegionInput`` are some)."""

    def count(self, image: ImageRef | OpenedImage) -> int:
        """Regions that an image takes in a sequence, the whole image counted."""
        ...

    def table(
        self, images: Sequence[ImageRef | OpenedImage], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Tensor | None]:
        """First row of each image (and one past the last), the base table, and pixels for the vision encoder."""
        ...
