"""Encoding many images of which some may be unusable: whatever loads is encoded, the rest is reported.

Used by evaluation and search, which both meet whole folders of other people's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert.data.images import at_record, identity
from mmbert.data.records import BadRecords, Record, Source
from mmbert.errors import ImageError
from mmbert.vision.images import ImageSource, load_image

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert


def usable_images(images: Sequence[ImageSource], where: Sequence[str], bad: BadRecords) -> list[int]:
    """Positions of the images that can be opened; the others go to ``bad``.

    Args:
        images: anything ``load_image`` takes.
        where: what to call each image in a message ("" for its own name).

    Raises:
        ImageError: an image cannot be opened and ``bad`` does not skip.
    """
    kept = []
    for position, (image, name) in enumerate(zip(images, where, strict=True)):
        fault = _fault(image, name)
        if fault is None:
            kept.append(position)
        else:
            path = image if isinstance(image, str | Path) else getattr(image, "path", None)
            bad.add(at_record(fault, path, name))
    return kept


def usable_records(records: Source | Sequence[Record], bad: BadRecords) -> list[int]:
    """Numbers of the records without an image or with one that can be opened; the others go to ``bad``.

    Each image is opened once, however many records are about it.

    Raises:
        ImageError: an image cannot be opened and ``bad`` does not skip.
    """
    faults: dict[str, ImageError | None] = {}
    kept = []
    for number in range(len(records)):
        record = records[number]
        fault = None
        if record.image is not None:
            name = identity(record.image)
            if name not in faults:
                faults[name] = _fault(record.image, record.origin)
            fault = faults[name]
        if fault is None:
            kept.append(number)
        else:
            bad.add(at_record(fault, record.image.path if record.image is not None else None, record.origin))
    return kept


def _fault(image: ImageSource, name: str) -> ImageError | None:
    """Why an image cannot be opened, if it cannot."""
    try:
        load_image(image, where=name or None)
    except ImageError as error:
        return error
    return None


def encode_usable_images(
    model: MMBert, images: Sequence[ImageSource], where: Sequence[str], bad: BadRecords
) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Encode the images that can be opened.

    Only when the whole lot fails are images tried one by one, so good images are decoded once.

    Returns:
        Their positions, and their unit vectors ``[len(positions), D]``.

    Raises:
        ImageError: an image cannot be opened and ``bad`` does not skip.
    """
    try:
        return list(range(len(images))), model.encode_images(images)
    except ImageError:
        kept = usable_images(images, where, bad)
        if len(kept) == len(images):  # it opens, and yet the model refused it: not ours to skip
            raise
    vectors = model.encode_images([images[i] for i in kept]) if kept else _no_rows(model)
    return kept, vectors


def _no_rows(model: MMBert) -> np.ndarray[Any, Any]:
    return np.zeros((0, model.embedding_size), dtype=np.float32)
