"""What old feature files say about one image, under whatever names, checked and made into regions.

In: a mapping with boxes, features, image size and perhaps class scores, as arrays, lists or base64 of little-endian
float32. Out: :class:`Regions` as the originals read them: sorted by highest class score, the whole image first.
"""

from __future__ import annotations

import base64
import binascii
import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmbert.errors import DataError
from mmbert.vision.regions import Regions

NAMES: dict[str, tuple[str, ...]] = {
    "boxes": ("boxes", "bbox", "bboxes", "image_bb"),
    "features": ("features", "image_features", "x"),
    "classes": ("classes", "cls_prob", "cls_probs", "cls_scores", "class_probs"),
    "count": ("num_boxes", "num_box", "num_regions"),
    "width": ("image_w", "image_width", "img_w", "width"),
    "height": ("image_h", "image_height", "img_h", "height"),
}
"""What the same thing is called by VL-BERT, bottom-up attention, MMF, ViLBERT and others."""
MOST_BOXES = 10_000
MOST_NUMBERS = 64 << 20
"""Numbers of one image, at most; 100 boxes have 0.4 million."""
LARGEST_SIDE = 1_000_000
TOLERANCE = 1.5
"""Pixels by which detectors' boxes may lead out of the image; they are clipped."""
_MISSING = object()


def find(values: Mapping[str, Any], what: str) -> Any:
    """The value under one of its names, or None."""
    return next((values[name] for name in NAMES[what] if name in values and values[name] is not None), None)


def regions_of(values: Mapping[str, Any], where: str, encoder: str) -> Regions:
    """Regions of one image.

    Args:
        values: what the file says, see :data:`NAMES`.
        where: what to call the image in an error.
        encoder: identity of what made the regions.

    Raises:
        DataError: something is missing, of another size, not finite, or outside the image.
    """
    width, height = (_side(find(values, side), side, where) for side in ("width", "height"))
    count = _count(find(values, "count"), where)
    boxes = numbers(find(values, "boxes"), "boxes", where)
    if count is None:
        count = len(boxes) if boxes.ndim == 2 else boxes.size // 4
    features = _rows(numbers(find(values, "features"), "features", where), count, "features", where)
    boxes = _boxes(_rows(boxes, count, "boxes", where), (width, height), where)
    classes = find(values, "classes")
    shares = None if classes is None else _rows(numbers(classes, "classes", where), count, "classes", where)
    for name, array in (("features", features), ("classes", shares)):
        if array is not None and not np.isfinite(array).all():
            raise DataError(f"{name} are not finite (NaN or infinite)", where=where)
    if shares is not None:
        if (shares < 0).any() or (shares > 1.01).any():
            raise DataError("classes are not shares between 0 and 1", where=where)
        order = np.argsort(-shares.max(axis=1), kind="stable")
        boxes, features, shares = boxes[order], features[order], shares[order]
    return Regions.with_whole_image(boxes, features, (width, height), shares, encoder)


def _side(value: Any, name: str, where: str) -> int:
    if value is None:
        raise DataError(f"the {name} of the image is missing", where=where, hint="boxes make no sense without it")
    side = _whole(value, name, where)
    if not 1 <= side <= LARGEST_SIDE:
        raise DataError(f"{name} {side} is no size of an image", where=where)
    return side


def _count(value: Any, where: str) -> int | None:
    if value is None:
        return None
    count = _whole(value, "number of boxes", where)
    if not 1 <= count <= MOST_BOXES:
        raise DataError(f"{count} boxes", where=where, hint=f"an image has 1 to {MOST_BOXES}")
    return count


def _whole(value: Any, name: str, where: str) -> int:
    try:
        number = float(np.asarray(value).reshape(-1)[0]) if not isinstance(value, str) else float(value)
        if number != int(number):
            raise ValueError
        return int(number)
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise DataError(f"{name} is not a whole number", where=where) from error


def numbers(value: Any, name: str, where: str) -> np.ndarray:
    """An array, nested lists, or base64 of little-endian float32, as float32.

    Raises:
        DataError: missing, or nothing of the kind.
    """
    if value is None:
        raise DataError(f"{name} are missing", where=where)
    try:
        if isinstance(value, str | bytes):
            raw = base64.b64decode(value, validate=True)
            array = np.frombuffer(raw, dtype="<f4")
        else:
            array = np.asarray(value)
            if array.dtype.kind not in "fiu":
                raise ValueError(f"numbers of type {array.dtype}")
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"{name} cannot be read: {error}", where=where, hint="the file is damaged or cut") from error
    if array.size > MOST_NUMBERS:
        raise DataError(f"{name} hold {array.size} numbers", where=where, hint="that is no image's")
    return array.astype(np.float32, copy=False)


def _rows(array: np.ndarray, count: int, name: str, where: str) -> np.ndarray:
    """[n, width] of ``count`` rows, of a flat or two-dimensional array."""
    if array.ndim == 2 and len(array) == count and array.shape[1]:
        return array
    if count and array.ndim == 1 and array.size and array.size % count == 0:
        return array.reshape(count, -1)
    raise DataError(f"{name} {list(array.shape)} do not fit {count} boxes", where=where, hint="the file is damaged")


def _boxes(boxes: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    boxes = boxes[:, :4]
    if boxes.shape[1] != 4:
        raise DataError("boxes do not have four numbers", where=where)
    if not np.isfinite(boxes).all():
        raise DataError("boxes are not finite (NaN or infinite)", where=where)
    edge = np.array([*size, *size], dtype=np.float32)
    outside = (boxes < -TOLERANCE) | (boxes > edge + TOLERANCE)
    if outside.any() or (boxes[:, 2:] < boxes[:, :2]).any():
        worst = boxes[(outside.any(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)).argmax()].tolist()
        raise DataError(f"box {worst} is not inside the image of {size[0]}x{size[1]}", where=where)
    return np.clip(boxes, 0, edge)


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    if kind is not np.ndarray or tuple(shape) != (0,):  # what numpy writes; anything else could ask for any memory
        raise pickle.UnpicklingError("an array that numpy did not write")
    return np.ndarray(shape, np.int8)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _buffer(content: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, dtype=dtype).reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _scalar(dtype: np.dtype, content: bytes) -> Any:
    return np.frombuffer(content, dtype=dtype)[0]


_ALLOWED: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": _latin1}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED |= {
        f"{_package}.multiarray._reconstruct": _reconstruct,
        f"{_package}.multiarray.scalar": _scalar,
        f"{_package}.numeric._frombuffer": _buffer,
    }


class _ArraysOnly(pickle.Unpickler):
    """Reads numbers, texts, containers and arrays; whatever else a pickle asks for is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(f"{module}.{name}", _MISSING)
        if found is _MISSING:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return found


def unpickled(content: bytes, where: str) -> Any:
    """A pickle of dictionaries, lists, numbers, texts and numpy arrays.

    Raises:
        DataError: damaged, or it holds anything else; nothing of it is run.
    """
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"cannot be read as data: {error}", where=where, hint="nothing of it was run") from error
