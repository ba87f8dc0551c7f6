"""Boxes that a user gives for an image, in a file or in a cell of metadata: JSON values in, boxes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmbert.data.json_items import finite_numbers, item_at, json_items
from mmbert.data.metadata import kind_of
from mmbert.data.official import box_within
from mmbert.data.records import RegionBox
from mmbert.errors import DataError


def read_boxes(path: Path, size: tuple[int, int]) -> list[RegionBox]:
    """Read a list of ``[x1, y1, x2, y2]``, or of ``{"box": [x1, y1, x2, y2], "name": ...}``, in pixels.

    Args:
        path: the file.
        size: width and height of the image.

    Raises:
        DataError: no such file, not such a list, or a box that is none or lies outside of the image; it is named.
    """
    found = []
    for key, number, item in json_items(path):
        where = f"{path.name}:{item_at(key, number)}"
        if key or not number:
            raise DataError("not a list of boxes", where=str(path), hint="[[x1, y1, x2, y2], ...]")
        found.append(box_of(item, size, where))
    if not found:
        raise DataError("no box in it", where=str(path))
    return found


def box_of(item: Any, size: tuple[int, int] | None, where: str) -> RegionBox:
    """One box as a user writes it.

    Args:
        item: ``[x1, y1, x2, y2]`` or ``{"box": [x1, y1, x2, y2], "name": ...}``, in pixels.
        size: width and height of the image, if known.
        where: to name in messages.

    Raises:
        DataError: something else, a box without area, or one outside of the image.
    """
    values, name = (item.get("box"), item.get("name")) if isinstance(item, dict) else (item, "")
    if not isinstance(values, list) or len(values) != 4:
        raise DataError(f"{kind_of(values)} where a box [x1, y1, x2, y2] belongs", where=where)
    x1, y1, x2, y2 = finite_numbers(values, "the box", where)
    return RegionBox(box_within((x1, y1, x2, y2), size, where), "" if name is None else str(name))
