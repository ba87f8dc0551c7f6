"""Region stores, encoders and old feature files small enough to be made while testing."""

from __future__ import annotations

import base64
import json
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import Quarters

from mmbert.data.records import ImageRef
from mmbert.vision.encoders.base import RegionExtractor
from mmbert.vision.extraction import Extraction, ImageFile
from mmbert.vision.regions import Regions
from mmbert.vision.store import RegionStore
from mmbert.vision.store_build import StoreBuilder
from mmbert.vision.store_format import Layout

FEATURES, CLASSES = 6, 5


def regions_of(seed: int, count: int | None = None, classes: int = CLASSES) -> Regions:
    """Random boxes, features and (unless ``classes`` is 0) distributions behind the whole image."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6)) if count is None else count
    corner = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (count, 2))], axis=1).astype(np.float32)
    features = rng.standard_normal((count, FEATURES)).astype(np.float32)
    shares = rng.dirichlet(np.ones(classes), count).astype(np.float32) if classes else None
    return Regions.with_whole_image(boxes, features, (80, 60), shares, "test")


def layout(**changes: Any) -> Layout:
    return Layout(**({"encoder": "test", "feature_size": FEATURES, "num_classes": CLASSES, "dtype": "fp32"} | changes))


def make_store(path: str | Path, images: dict[str, Regions], *, shard_images: int = 3, **changes: Any) -> RegionStore:
    """A finished store of these images."""
    builder = StoreBuilder(path, layout(**changes), list(images), shard_images=shard_images)
    builder.build(list(images.values()), lambda lots: (list(lot) for lot in lots))
    return RegionStore(path)


def save_pictures(folder: Path, count: int) -> list[ImageFile]:
    """Small images in colours of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        pixels = rng.integers(0, 256, (int(rng.integers(9, 20)), int(rng.integers(9, 20)), 3), dtype=np.uint8)
        path = folder / f"{i:03}.png"
        Image.fromarray(pixels).save(path)
        files.append(ImageFile(ImageRef(path=str(path), key=path.name), where=f"list:{i + 1}"))
    return files


class SlowQuarters(Quarters):
    """Takes its time, so that it can be interrupted."""

    options: dict[str, Any] = {}
    seconds = 0.004

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.unit = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels: Any, table: Any) -> Any:
        time.sleep(self.seconds)
        return super().forward(pixels, table)


class Corners(RegionExtractor):
    """As many regions as an image is wide modulo 3, and the whole image; sees whole images, as detectors do."""

    options: dict[str, Any] = {}
    feature_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        self.batches.append(len(images))
        found = []
        for image in images:
            count = 1 + image.width % 3
            boxes = np.array([[0, 0, i + 1, i + 1] for i in range(count)], dtype=np.float32)
            colours = [np.asarray(image.crop((0, 0, i + 1, i + 1))).mean((0, 1)) for i in range(count)]
            found.append(Regions.with_whole_image(boxes, np.array(colours, np.float32), image.size, None, "corners"))
        return found


def extract_pictures(path: str | Path, files: Sequence[ImageFile], part: tuple[int, int] = (0, 1)) -> None:
    """One (part of an) extraction with the slow encoder, as a command does it."""
    layout_ = Layout(encoder="slow", feature_size=3, dtype="fp16")
    builder = StoreBuilder(path, layout_, [file.image.key for file in files], shard_images=3)
    builder.build(list(files), Extraction(SlowQuarters(), batch_size=2, threads=1), part=part)


def encoded(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()


def old_image(seed: int, count: int = 3, size: tuple[int, int] = (80, 60)) -> dict[str, Any]:
    """What an old file says about one image, as arrays."""
    regions = regions_of(seed, count)
    assert regions.classes is not None
    return {
        "image_w": size[0],
        "image_h": size[1],
        "num_boxes": count,
        "boxes": regions.boxes[1:],
        "features": regions.features[1:],
        "classes": regions.classes[1:],
    }


def old_json(values: dict[str, Any], **changes: Any) -> str:
    """The same as VL-BERT's JSON."""
    texts = {n: encoded(v) if isinstance(v, np.ndarray) else v for n, v in values.items()}
    return json.dumps(texts | changes)


def write_zip(path: Path, members: dict[str, str], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
