"""What do stored regions cost, against the legacy way, and extracting them, against timm alone?

``feature_load`` and ``feature_disk``: 500 images with 36 boxes of 2,048 numbers and 1,601 class shares, in random
batches of 32, until boxes, features and classes are collated float32 tensors. The legacy way is that of VL-BERT's
loaders: a JSON from a zip, base64, numpy, sorted by class score, the whole image in front, stacked. Ours reads a store
with fp16 features and the 16 largest class shares; its tensors are copies, so every value is read on both sides.

``extract_speed``: images per second from JPEG files to a finished store with the grid encoder
``tf_efficientnet_lite0``, against timm's model, transform and ``forward_features`` on the same files, with the same
threads for decoding. Weights are random: they do not change the time. ``extract_speed_starter``: the same with the
starter's own encoder (96 pixels, three levels of the backbone) on 2,000 images.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from _common import CLASSES, FEATURES, arguments, in_turn, report
from PIL import Image

from mmbert import MMBert
from mmbert.compat.feature_export import encoded
from mmbert.compat.features import convert_features
from mmbert.data.records import ImageRef
from mmbert.data.region_input import RegionInput
from mmbert.vision.encoders import grid
from mmbert.vision.extraction import Extraction, ImageFile
from mmbert.vision.store_build import StoreBuilder
from mmbert.vision.store_format import Layout

BOXES, BATCH = 36, 32
BACKBONE, SIDE = "tf_efficientnet_lite0", 224
THREADS = 2


def write_legacy(path: Path, images: int) -> list[str]:
    """A zip of JSON files as VL-BERT's detector script writes them; gives the names of the images."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(images):
            corner = rng.uniform(0, 300, (BOXES, 2))
            peaks = rng.random((BOXES, CLASSES), dtype=np.float32) ** 1000  # few classes have most of the share
            shares = peaks / peaks.sum(1, keepdims=True)
            content = {
                "image_id": number,
                "image_w": 640,
                "image_h": 480,
                "num_boxes": BOXES,
                "boxes": encoded(np.concatenate([corner, corner + rng.uniform(20, 150, (BOXES, 2))], axis=1)),
                "features": encoded(np.maximum(rng.standard_normal((BOXES, FEATURES), dtype=np.float32), 0)),
                "classes": encoded(shares),
            }
            archive.writestr(f"{number}.json", json.dumps(content))
    return [str(number) for number in range(images)]


def legacy_image(archive: zipfile.ZipFile, name: str) -> tuple[np.ndarray, ...]:
    """Boxes, features and classes of one image, the whole image first."""
    content = json.loads(archive.read(f"{name}.json"))
    count = content["num_boxes"]
    boxes, features, classes = (
        np.frombuffer(base64.b64decode(content[key]), dtype=np.float32).reshape(count, -1)
        for key in ("boxes", "features", "classes")
    )
    order = np.argsort(classes.max(axis=1))[::-1]
    whole = np.array([[0, 0, content["image_w"] - 1, content["image_h"] - 1]], dtype=np.float32)
    return (
        np.concatenate([whole, boxes[order]]),
        np.concatenate([features.mean(0, keepdims=True), features[order]]),
        np.concatenate([np.zeros_like(classes[:1]), classes[order]]),
    )


def load_legacy(path: Path, batches: list[list[str]]) -> None:
    """All batches as float32 tensors [images, regions, …]."""
    with zipfile.ZipFile(path) as archive:
        for batch in batches:
            parts = zip(*(legacy_image(archive, name) for name in batch), strict=True)
            for tensor in [torch.from_numpy(np.stack(part)) for part in parts]:
                assert tensor.dtype == torch.float32


def load_store(path: Path, batches: list[list[str]]) -> None:
    """All batches as one float32 table each."""
    images = RegionInput(path)
    for batch in batches:
        _, table, _ = images.table([ImageRef(data=b"", key=name) for name in batch])
        assert table.features is not None and table.features.dtype == torch.float32


def size(path: Path) -> int:
    """Bytes of a file or of a folder's files."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def compare_loading(folder: Path, images: int, rounds: int) -> None:
    names = write_legacy(folder / "legacy.zip", images)
    convert_features(folder / "legacy.zip", folder / "store")
    order = np.random.default_rng(1).permutation(images)
    batches = [[names[i] for i in order[start : start + BATCH]] for start in range(0, images, BATCH)]
    runs: dict[str, Any] = {
        "ours": lambda: load_store(folder / "store", batches),
        "legacy": lambda: load_legacy(folder / "legacy.zip", batches),
    }
    median = in_turn(rounds, runs)
    peer = "zip, JSON, base64 and numpy, as in VL-BERT"
    each = {name: 1000 * seconds / images for name, seconds in median.items()}
    report("feature_load", each["ours"], "ms per image", peer, each["legacy"])
    disk = {name: size(folder / file) / images / 1000 for name, file in (("ours", "store"), ("legacy", "legacy.zip"))}
    report("feature_disk", disk["ours"], "KB per image", peer, disk["legacy"])


def write_photos(folder: Path, images: int) -> list[Path]:
    """JPEG files of 500 x 375 with structure in them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    paths = []
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def plain_timm(model: Any, transform: Any, paths: list[Path]) -> None:
    """Features of all images by timm alone, images decoded ahead in threads."""

    def load(path: Path) -> Any:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    def batches() -> Iterator[Any]:
        with ThreadPoolExecutor(THREADS) as pool:
            loaded = pool.map(load, paths)
            for start in range(0, len(paths), BATCH):
                yield torch.stack([next(loaded) for _ in paths[start : start + BATCH]])

    with torch.inference_mode():
        for batch in batches():
            model.forward_features(batch.to(memory_format=torch.channels_last)).float().mean().item()


def compare_extraction(folder: Path, figure: str, encoder: grid.GridEncoder, images: int, rounds: int) -> None:
    """Images per second of ``encoder`` against timm's model of the same backbone and input size."""
    paths = write_photos(folder / "photos", images)
    files = [ImageFile(ImageRef(path=str(path), key=path.name)) for path in paths]
    side = encoder.image_size
    model = timm.create_model(BACKBONE, pretrained=False, num_classes=0).eval().to(memory_format=torch.channels_last)
    settings = timm.data.resolve_model_data_config(model) | {"input_size": (3, side, side)}
    transform = timm.data.create_transform(**settings, is_training=False)
    layout = Layout(encoder=encoder.identity, feature_size=encoder.feature_size)

    def ours() -> None:
        builder = StoreBuilder(folder / "extracted", layout, [path.name for path in paths])
        builder.build(files, Extraction(encoder, batch_size=BATCH, threads=THREADS))

    def timed_ours() -> float:
        shutil.rmtree(folder / "extracted", ignore_errors=True)
        start = time.perf_counter()
        ours()
        return time.perf_counter() - start

    median = in_turn(rounds, {"ours": timed_ours, "timm": lambda: plain_timm(model, transform, paths)})
    speed = {name: images / seconds for name, seconds in median.items()}
    report(figure, speed["ours"], "images/s", f"timm {BACKBONE}", speed["timm"], more_is_better=True)


def main() -> None:
    quick = arguments(__doc__, "fewer images and rounds").quick
    with tempfile.TemporaryDirectory() as temporary:
        compare_loading(Path(temporary), 100 if quick else 500, 2 if quick else 5)
        fresh = grid.build(backbone=BACKBONE, image_size=SIDE).eval()
        compare_extraction(Path(temporary) / "fresh", "extract_speed", fresh, 64 if quick else 192, 1 if quick else 3)
        starter = MMBert.from_pretrained("starter", device="cpu").model.trunk.vision
        count, rounds = (64, 1) if quick else (2000, 1)
        compare_extraction(Path(temporary) / "starter", "extract_speed_starter", starter, count, rounds)


if __name__ == "__main__":
    main()
