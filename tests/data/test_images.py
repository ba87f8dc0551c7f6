"""Images of a batch as pixels: decoding once, transparency, augmentation, the memory that is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Quarters
from torch import Generator, Tensor

import mmbert.data.images
from mmbert.data.images import OpenedImage, PixelInput
from mmbert.data.records import ImageRef
from mmbert.errors import ImageError


@pytest.fixture
def files(tmp_path: Path) -> list[ImageRef]:
    for i, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (10 + i, 20), colour).save(tmp_path / f"{i}.png")
    return [ImageRef(path=str(tmp_path / f"{i}.png")) for i in range(3)]


def test_boxes_and_sizes_are_in_each_images_own_pixels(files: list[ImageRef]) -> None:
    first_rows, table, pixels = PixelInput(Quarters()).table(files)
    assert first_rows == [0, 5, 10, 15]
    assert table.sizes[::5].tolist() == [[10, 20], [11, 20], [12, 20]]
    assert table.boxes[10].tolist() == [0, 0, 12, 20]
    assert table.features is None
    assert pixels.shape == (3, 3, 8, 8)
    assert pixels.dtype == torch.uint8
    assert pixels.amax((2, 3)).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_transparent_parts_become_white() -> None:
    drawing = Image.new("RGBA", (16, 8), (200, 0, 0, 255))
    drawing.paste((0, 0, 0, 0), (8, 0, 16, 8))
    drawing.putpixel((0, 0), (200, 0, 0, 255))
    _, _, pixels = PixelInput(Quarters()).table([OpenedImage(drawing, "x")])
    assert pixels[0, :, 4, 0].tolist() == [200, 0, 0]
    assert pixels[0, :, 4, 7].tolist() == [255, 255, 255]


def test_half_transparent_colours_are_mixed_with_white() -> None:
    drawing = Image.new("RGBA", (8, 8), (100, 0, 200, 51))  # a fifth
    _, _, pixels = PixelInput(Quarters()).table([OpenedImage(drawing, "x")])
    np.testing.assert_allclose(pixels[0, :, 3, 3].tolist(), [224, 204, 244], atol=1)


def test_augmentation_is_decided_by_the_generator_and_absent_without_one(files: list[ImageRef]) -> None:
    def noise(rgba: Tensor, generator: Generator) -> Tensor:
        assert rgba.shape[1] == 4
        return torch.rand((len(rgba), 3, 8, 8), generator=generator)

    images = PixelInput(Quarters(), augment=noise)
    first, again, other = (images.table(files, np.random.default_rng(seed))[2] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert images.table(files)[2].dtype == torch.uint8


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    load = mmbert.data.images.load_image

    def counted(image: ImageRef, **options: bool) -> Image.Image:
        opened.append(image.path)
        return load(image, **options)

    monkeypatch.setattr(mmbert.data.images, "load_image", counted)
    return opened


def test_kept_images_are_decoded_once(files: list[ImageRef], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = count_decoding(monkeypatch)
    images = PixelInput(Quarters())
    first = images.table(files)[2]
    assert torch.equal(images.table(files)[2], first)
    assert len(opened) == 3
    PixelInput(Quarters(), cache_bytes=0).table(files + files)
    assert len(opened) == 9


def test_the_least_recently_used_image_is_forgotten_first(
    files: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = count_decoding(monkeypatch)
    images = PixelInput(Quarters(), cache_bytes=2 * 4 * 8 * 8)  # two images
    a, b, c = files
    for wanted in ([a], [b], [a], [c], [a], [b]):
        images.table(wanted)
    assert [Path(p).stem for p in opened] == ["0", "1", "2", "1"]


def test_files_of_one_key_are_kept_apart(files: list[ImageRef]) -> None:
    images = PixelInput(Quarters())
    same = [ImageRef(path=ref.path, key="1.png") for ref in files]
    assert torch.equal(torch.cat([images.table([ref])[2] for ref in same]), images.table(files)[2])


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"x\.png"):
        PixelInput(Quarters()).table([ImageRef(path=str(tmp_path / "x.png"))])
