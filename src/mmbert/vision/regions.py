"""Regions of one image: boxes, features and, where a detector made them, class distributions; and boxes given ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from mmbert.errors import DataError

MASK_SIDE = 14
"""Cells per side of an instance mask, as the originals' MASK_SIZE."""
SUBCELLS = 16
"""A cell counts as covered by what share of its 16 x 16 points are."""


@dataclass(frozen=True, slots=True)
class Regions:
    """What a vision encoder or detector found in one image; row 0 is the whole image.

    Attributes:
        boxes: [n, 4] float32 x1, y1, x2, y2 in pixels.
        features: [n, F] float32.
        size: width and height of the image in pixels.
        classes: [n, C] float32 class distributions (row 0 is unused), or None.
        encoder: what made them; a model refuses regions of another encoder.
    """

    boxes: np.ndarray
    features: np.ndarray
    size: tuple[int, int]
    classes: np.ndarray | None = None
    encoder: str = ""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or n == 0:
            raise DataError(f"boxes must be [n, 4] with n > 0, not {list(self.boxes.shape)}")
        if self.features.ndim != 2 or len(self.features) != n:
            raise DataError(f"{n} boxes but features {list(self.features.shape)}")
        if self.classes is not None and len(self.classes) != n:
            raise DataError(f"{n} boxes but classes {list(self.classes.shape)}")
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.features).all()):
            raise DataError("boxes or features are not finite")

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def with_whole_image(
        cls,
        boxes: np.ndarray,
        features: np.ndarray,
        size: tuple[int, int],
        classes: np.ndarray | None = None,
        encoder: str = "",
    ) -> Regions:
        """Put the whole image (mean feature, box 0, 0, w-1, h-1) before detected regions, as the originals do."""
        whole = np.array([[0, 0, size[0] - 1, size[1] - 1]], dtype=np.float32)
        rows = None if classes is None else np.concatenate([np.zeros_like(classes[:1]), classes])
        return cls(
            np.concatenate([whole, boxes.astype(np.float32)]),
            np.concatenate([features.mean(0, keepdims=True), features]).astype(np.float32),
            size,
            rows,
            encoder,
        )


@dataclass(frozen=True, slots=True)
class GivenBoxes:
    """Boxes of one image that are known beforehand (annotated, or detected); the whole image is not among them.

    Attributes:
        boxes: [m, 4] float32 x1, y1, x2, y2 in pixels.
        masks: [m, s, s] float32 share (0..1) of each cell of the box that the object covers; None: all of it.
        classes: [m, C] float32 class distributions (targets of masked-region classification), or None.
        hidden: [m] bool, regions that are to be predicted and so must not be seen; None hides none.
    """

    boxes: np.ndarray
    masks: np.ndarray | None = None
    classes: np.ndarray | None = None
    hidden: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise DataError(f"boxes must be [m, 4], not {list(self.boxes.shape)}")
        if not np.isfinite(self.boxes).all():
            raise DataError("boxes are not finite")
        if (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise DataError("a box ends before it starts", hint="boxes are x1, y1, x2, y2")
        for name in ("masks", "classes", "hidden"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != n:
                raise DataError(f"{n} boxes but {name} {list(rows.shape)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def mirrored(self, width: int) -> GivenBoxes:
        """The boxes (and their masks) in the image of that width mirrored left to right."""
        masks = None if self.masks is None else np.ascontiguousarray(self.masks[:, :, ::-1])
        return replace(self, boxes=mirrored_boxes(self.boxes, width), masks=masks)


def mirrored_boxes(boxes: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """[m, 4] x1, y1, x2, y2 in an image mirrored left to right: its edges 0 and ``width`` change places."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1).astype(np.float32)


def polygon_mask(box: Sequence[float], polygons: Sequence[Sequence[float]], side: int = MASK_SIDE) -> np.ndarray:
    """[side, side] float32: 1 for cells of a box that lie within an object's outlines by half or more, else 0.

    Args:
        box: x1, y1, x2, y2 in pixels; as in the originals the pixel at x2 belongs to it.
        polygons: outlines in pixels of the image, each x, y, x, y ...; where they overlap counts once.
        side: cells per side.
    """
    fine = side * SUBCELLS
    drawn = Image.new("L", (fine, fine))
    scale = [fine / (box[2] - box[0] + 1), fine / (box[3] - box[1] + 1)]
    for outline in polygons:
        points = [((x - box[0]) * scale[0] - 0.5, (y - box[1]) * scale[1] - 0.5) for x, y in _pairs(outline)]
        if len(points) > 2:
            ImageDraw.Draw(drawn).polygon(points, fill=1)
    covered = np.asarray(drawn, dtype=np.float32).reshape(side, SUBCELLS, side, SUBCELLS).mean((1, 3))
    return (covered >= 0.5).astype(np.float32)


def _pairs(outline: Sequence[float]) -> Iterator[tuple[float, float]]:
    return zip(outline[::2], outline[1::2], strict=False)
