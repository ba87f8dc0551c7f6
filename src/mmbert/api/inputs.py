"""What users hand in, in the form that the model's passes take: images as references, and work cut to passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmbert.data.archives import ZippedImage
from mmbert.data.images import OpenedImage
from mmbert.data.records import ImageRef
from mmbert.vision.images import load_image


def image_reference(image: Any, number: int) -> ImageRef | OpenedImage:
    """Any image source in the form that collation takes; a path or reference twice is one image."""
    if isinstance(image, ImageRef | ZippedImage | OpenedImage):
        return image  # type: ignore[return-value]
    if isinstance(image, str | Path):
        return ImageRef(path=str(image))
    if isinstance(image, bytes):
        return ImageRef(data=image, key=f"#{number}")
    return OpenedImage(load_image(image, keep_alpha=True), f"#{number}")


def as_list(images: Any) -> list[Any]:
    """One image or many as a list; an array of up to three dimensions is one image."""
    single = isinstance(images, str | Path | bytes | Image.Image | ImageRef | ZippedImage)
    if single or (isinstance(images, np.ndarray) and images.ndim <= 3):
        return [images]
    return list(images)


def chunks(count: int, size: int, progress: bool, what: str) -> Iterator[list[int]]:
    """The numbers below ``count``, at most ``size`` at a time, with a progress bar that counts ``what``."""
    with tqdm(total=count, desc=what, disable=not progress, unit=what[:-1]) as bar:
        for start in range(0, count, size):
            chosen = list(range(start, min(start + size, count)))
            yield chosen
            bar.update(len(chosen))


def by_budget(order: Iterable[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut ``order`` into runs of at most ``budget`` positions."""
    chosen: list[int] = []
    total = 0
    for i in order:
        if chosen and total + lengths[i] > budget:
            yield chosen
            chosen, total = [], 0
        chosen.append(i)
        total += lengths[i]
    if chosen:
        yield chosen
