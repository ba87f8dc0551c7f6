"""Extraction: every image's regions in its place, damaged ones named, memory bounded."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import Corners, SlowQuarters, save_pictures

import mmbert.vision.extraction
from mmbert.data.records import ImageRef
from mmbert.errors import DataError, ImageError
from mmbert.vision.encoders.base import RegionExtractor
from mmbert.vision.extraction import Extraction, ImageFile
from mmbert.vision.images import load_image
from mmbert.vision.regions import Regions


class Fast(SlowQuarters):
    seconds = 0.0


def write_empty_png(path: Path, width: int, height: int) -> None:
    """A file that claims to be so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def alone(encoder: RegionExtractor, file: ImageFile) -> Regions:
    return encoder.extract([load_image(file.image)])[0]


@pytest.mark.parametrize("encoder", [Fast(), Corners()], ids=["grid", "detector"])
def test_each_image_gets_its_regions_in_its_place(tmp_path: Path, encoder: RegionExtractor) -> None:
    files = save_pictures(tmp_path, 11)
    lots = [files[:4], [], files[4:5], files[5:]]
    found = list(Extraction(encoder, batch_size=3, threads=2)(lots))
    assert [len(lot) for lot in found] == [4, 0, 1, 6]
    for file, regions in zip(files, [r for lot in found for r in lot], strict=True):
        assert isinstance(regions, Regions)
        wanted = alone(encoder, file)
        np.testing.assert_allclose(regions.features, wanted.features, rtol=1e-6)
        np.testing.assert_array_equal(regions.boxes, wanted.boxes)
        assert regions.size == wanted.size


def test_damaged_images_are_faults_at_their_record(tmp_path: Path) -> None:
    files = save_pictures(tmp_path, 5)
    (tmp_path / "001.png").write_bytes(b"no image")
    (tmp_path / "003.png").unlink()
    (found,) = Extraction(Fast(), batch_size=2)([files])
    assert [isinstance(f, Regions) for f in found] == [True, False, True, False, True]
    assert isinstance(found[1], ImageError)
    assert found[1].where == "list:2" and found[1].message.startswith("001.png: ")


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (good,) = save_pictures(tmp_path, 1)
    bomb = tmp_path / "bomb.png"
    write_empty_png(bomb, 20_000, 6_000)
    (found,) = Extraction(Fast())([[good, ImageFile(ImageRef(path=str(bomb), key="bomb.png"))]])
    assert isinstance(found[0], Regions)
    assert isinstance(found[1], ImageError) and "million pixels" in found[1].message


class Spoilt(Corners):
    def extract(self, images: list[Image.Image]) -> list[Regions]:
        if any(image.width == 13 for image in images):
            raise DataError("features are not finite")
        return super().extract(images)


def test_one_image_that_cannot_be_encoded_costs_no_other(tmp_path: Path) -> None:
    files = []
    for i, width in enumerate((10, 13, 12, 11)):
        Image.new("RGB", (width, 9), "red").save(tmp_path / f"{i}.png")
        files.append(ImageFile(ImageRef(path=str(tmp_path / f"{i}.png")), where=f"list:{i}"))
    (found,) = Extraction(Spoilt(), batch_size=4)([files])
    assert [isinstance(f, Regions) for f in found] == [True, False, True, True]
    assert isinstance(found[1], DataError) and found[1].where == "list:1"


def test_large_images_are_neither_batched_nor_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmbert.vision.extraction, "PIXELS_PER_BATCH", 300)
    monkeypatch.setattr(mmbert.vision.extraction, "PIXELS_AHEAD", 450)
    opened: list[str] = []
    load = mmbert.vision.extraction.load_image

    def counted(image: ImageRef, where: str | None = None) -> Image.Image:
        opened.append(image.key)
        return load(image, where=where)

    monkeypatch.setattr(mmbert.vision.extraction, "load_image", counted)
    files = []
    for i in range(9):
        Image.new("RGB", (10, 20), "red").save(tmp_path / f"{i}.png")  # 200 pixels
        files.append(ImageFile(ImageRef(path=str(tmp_path / f"{i}.png"))))
    encoder = Corners()
    ahead: list[int] = []
    extract = encoder.extract

    def watched(images: list[Image.Image]) -> list[Regions]:
        ahead.append(len(opened) - sum(encoder.batches))
        return extract(images)

    monkeypatch.setattr(encoder, "extract", watched)
    (found,) = Extraction(encoder, batch_size=8, threads=1)([files])
    assert len(found) == 9 and all(isinstance(f, Regions) for f in found)
    assert encoder.batches == [1] * 9
    assert max(ahead) <= 4  # the batch, the next in line, and what 450 pixels allow
