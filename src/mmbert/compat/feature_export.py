"""A region store written back as VL-BERT's feature files: a zip with one JSON for each image, arrays in base64."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mmbert.errors import DataError
from mmbert.vision.images import IMAGE_SUFFIXES
from mmbert.vision.regions import Regions
from mmbert.vision.store import RegionStore

STAMP = (1980, 1, 1, 0, 0, 0)
"""Date of every member, so that one store always gives the same bytes."""


def write_json_zip(store: RegionStore, out: Path, progress: Callable[[int], None] = lambda images: None) -> int:
    """Write all images of a store; the whole image (region 0) is left out, as readers of these files put it there.

    Returns:
        how many images.

    Raises:
        DataError: two keys give one name, or the file cannot be written.
    """
    names = {_member(key): key for key in store.keys}
    if len(names) != len(store):
        raise DataError("two keys differ in their endings only", where=store.path)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, key in names.items():
                regions = store.regions(key)
                archive.writestr(zipfile.ZipInfo(name, STAMP), json.dumps(legacy_json(key, regions)))
                progress(1)
        partial.replace(out)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(out)) from error
    finally:
        partial.unlink(missing_ok=True)
    return len(names)


def _member(key: str) -> str:
    path = PurePosixPath(key.replace("\\", "/"))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        path = path.with_suffix("")
    return "/".join(part for part in path.parts if part not in ("/", "..")) + ".json"


def legacy_json(key: str, regions: Regions) -> dict[str, Any]:
    """One image's JSON; ``image_id`` is a number where its name is one."""
    name = PurePosixPath(_member(key)).stem
    found = {
        "image_id": int(name) if name.isascii() and name.isdigit() else name,
        "image_w": regions.size[0],
        "image_h": regions.size[1],
        "num_boxes": len(regions) - 1,
        "boxes": encoded(regions.boxes[1:]),
        "features": encoded(regions.features[1:]),
    }
    return found if regions.classes is None else found | {"classes": encoded(regions.classes[1:])}


def encoded(array: np.ndarray) -> str:
    """Base64 of little-endian float32, row by row."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")
