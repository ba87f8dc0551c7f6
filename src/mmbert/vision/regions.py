"""Regions of one image: boxes, features and, where a detector made them, class distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmbert.errors import DataError


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
