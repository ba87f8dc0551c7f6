"""Images of a batch: decoded once, kept small in memory, turned into pixels or looked up as features.

Stands between records (which only name images) and collation (which needs a region table).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmbert.data.records import ImageRef, RegionBox
from mmbert.errors import ConfigError, ImageError
from mmbert.model.packed import Pixels, RegionTable
from mmbert.vision.encoders.base import VisionEncoder, join_images
from mmbert.vision.images import load_image
from mmbert.vision.regions import MASK_SIDE, GivenBoxes, polygon_mask

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class OpenedImage:
    """An image that is in memory already; stands wherever an ``ImageRef`` does."""

    image: Image.Image
    key: str


@dataclass(frozen=True, eq=False)
class BoxedImage:
    """An image and the boxes in it that a vision encoder is to look into; stands wherever an ``ImageRef`` does.

    The same image with other boxes, or with others of them hidden, or mirrored is another one: its regions are others.

    Args:
        image: the image.
        given: its boxes.
        outlines: polygons of each box's object, of which masks are made when the image is opened; () for no masks.
        flipped: seen mirrored left to right, with its boxes (which are given as they are in the image).
    """

    image: ImageRef | OpenedImage
    given: GivenBoxes
    outlines: tuple[tuple[tuple[float, ...], ...], ...] = ()
    flipped: bool = False

    @property
    def key(self) -> str:
        """The image's."""
        return self.image.key

    @classmethod
    def of(cls, image: ImageRef | OpenedImage, boxes: Sequence[RegionBox]) -> BoxedImage:
        """The boxes of a record, with a mask for each that has outlines."""
        corners = np.array([box.box for box in boxes], dtype=np.float32).reshape(-1, 4)
        outlines = tuple(box.polygons for box in boxes) if any(box.polygons for box in boxes) else ()
        return cls(image, GivenBoxes(corners), outlines)

    def hiding(self, hidden: np.ndarray) -> BoxedImage:
        """The same with ``hidden`` [m] of the boxes blanked in the pixels."""
        return replace(self, given=replace(self.given, hidden=hidden))

    @classmethod
    def mirrored(cls, image: AnyImage) -> BoxedImage:
        """An image as it is seen in a mirror; whoever asks swaps left and right in its text."""
        if isinstance(image, BoxedImage):
            return replace(image, flipped=not image.flipped)
        return cls(image, GivenBoxes(np.zeros((0, 4), dtype=np.float32)), flipped=True)

    def with_masks(self) -> GivenBoxes:
        """The boxes, with the masks of their outlines; a box without any counts as a whole."""
        if not self.outlines:
            return self.given
        whole = np.ones((MASK_SIDE, MASK_SIDE), dtype=np.float32)
        pairs = zip(self.given.boxes.tolist(), self.outlines, strict=True)
        return replace(
            self.given, masks=np.stack([polygon_mask(box, found) if found else whole for box, found in pairs])
        )


AnyImage = ImageRef | OpenedImage | BoxedImage


def identity(image: AnyImage) -> str:
    """What makes two references the same image: the file they name, else their key (else the encoded bytes).

    A key alone would not do: pictures of two folders may have the same name.
    """
    if isinstance(image, BoxedImage):
        found = hashlib.blake2b(repr(image.outlines).encode(), digest_size=16)
        for rows in (image.given.boxes, image.given.masks, image.given.classes, image.given.hidden):
            found.update(b"-" if rows is None else np.ascontiguousarray(rows).tobytes() + b"+")
        return f"{identity(image.image)}|{found.hexdigest()}{'|flipped' if image.flipped else ''}"
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
        augment: turns [I, 4, S, S] uint8 RGBA into [I, 3, S, S] float in 0..1; None composites onto white. Not for
            encoders that take boxes: it moves what they stand around.
        cache_bytes: decoded images kept in memory, least recently used thrown out first;
            0 keeps none (then a file that changes is read anew).

    Raises:
        ConfigError: an augmentation for an encoder that takes boxes.
    """

    def __init__(
        self, encoder: VisionEncoder, *, augment: Augmentation | None = None, cache_bytes: int = 1_000_000_000
    ) -> None:
        if augment is not None and encoder.takes_boxes:
            raise ConfigError(
                f"augmentation would move images away from their boxes, which encoder {encoder.kind!r} looks into",
                hint="leave augment out of the recipe",
            )
        self.encoder = encoder
        self.augment = augment
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, tuple[Tensor, tuple[int, int]]] = OrderedDict()
        self._held = 0

    @property
    def blanks_hidden(self) -> bool:
        """Hidden regions are blanked in the pixels; collation then asks for such an image."""
        return self.encoder.blanks_hidden

    def table(
        self, images: Sequence[AnyImage], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Pixels]:
        """First rows, base table (features still to be made) and pixels of ``images``.

        Args:
            images: distinct images.
            rng: randomness of the augmentation; None leaves the images as they are.
        """
        loaded = [self._seen(image) for image in images]
        given = [
            _given(image, width) if isinstance(image, BoxedImage) else None
            for image, (_, (width, _)) in zip(images, loaded, strict=True)
        ]
        first_rows, table = self.encoder.table([size for _, size in loaded], given)
        pixels = join_images([pixels for pixels, _ in loaded])
        if isinstance(pixels, list):
            return first_rows, table, [_on_white(image.unsqueeze(0))[0] for image in pixels]
        return first_rows, table, self._pixels(pixels, rng)

    def boxes(self, image: AnyImage, size: tuple[int, int]) -> np.ndarray:
        """[n, 4] boxes of an image's regions, the whole image first, in pixels of the image (mirrored if that is).

        Args:
            image: nothing is opened.
            size: its width and height.
        """
        given = _given(image, size[0]) if isinstance(image, BoxedImage) else None
        _, table = self.encoder.table([size], [given])
        return table.boxes.numpy()

    def count(self, image: AnyImage) -> int:
        """Regions of an image."""
        given = len(image.given) if isinstance(image, BoxedImage) and self.encoder.takes_boxes else 0
        return self.encoder.regions_per_image + given

    def _pixels(self, rgba: Tensor, rng: np.random.Generator | None) -> Tensor:
        if self.augment is not None and rng is not None:
            return self.augment(rgba, torch.Generator().manual_seed(int(rng.integers(2**62))))
        return _on_white(rgba)

    def _seen(self, image: AnyImage) -> tuple[Tensor, tuple[int, int]]:
        if not isinstance(image, BoxedImage):
            return self._load(image)
        pixels, size = self._load(image.image)
        return (pixels.flip(-1) if image.flipped else pixels), size

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


def _given(image: BoxedImage, width: int) -> GivenBoxes:
    given = image.with_masks()
    return given.mirrored(width) if image.flipped else given


def _on_white(rgba: Tensor) -> Tensor:
    """[I, 4, h, w] uint8 to [I, 3, h, w] uint8."""
    colour, alpha = rgba[:, :3].float(), rgba[:, 3:].float() / 255
    return (colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


class ImageInput(Protocol):
    """What tasks and collation ask of the images of a batch (``PixelInput`` and ``RegionInput`` are some).

    Where ``blanks_hidden`` is there and true, hidden regions are asked for as :class:`BoxedImage` s that hide them.
    """

    def boxes(self, image: Any, size: tuple[int, int]) -> np.ndarray:
        """[n, 4] boxes of an image's regions, the whole image first, in pixels of an image of that size."""
        ...

    def count(self, image: Any) -> int:
        """Regions that an image takes in a sequence, the whole image counted."""
        ...

    def table(
        self, images: Sequence[Any], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Pixels | None]:
        """First row of each image (and one past the last), the base table, and pixels for the vision encoder."""
        ...
