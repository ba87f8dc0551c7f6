"""Opening images: every kind of file gives the right pixels, every unusable one a typed error."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmbert.data.records import ImageRef
from mmbert.errors import ImageError
from mmbert.vision import images
from mmbert.vision.images import load_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "error::PIL.Image.DecompressionBombWarning")

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    assert image.mode == "RGB"
    return np.asarray(image)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def quarters(size: int = 16) -> Image.Image:
    """Red and green above blue and yellow: every turn and mirror image of it looks different."""
    image = Image.new("RGB", (2 * size, size))  # wider than high, so that width and height cannot be swapped unseen
    for box, colour in [((0, 0), RED), ((size, 0), GREEN), ((0, size // 2), BLUE), ((size, size // 2), YELLOW)]:
        image.paste(colour, (*box, box[0] + size, box[1] + size // 2))
    return image


# -- what may be given --------------------------------------------------------------------------------------------


def test_every_way_to_give_an_image_gives_the_same_pixels(noise: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a b#ü.png"
    noise.save(path)
    data = path.read_bytes()
    given: list[images.ImageSource] = [
        str(path),
        path,
        path.as_uri(),
        data,
        noise,
        np.asarray(noise),
        ImageRef(path=str(path), key="x"),
        ImageRef(data=data, key="x"),
    ]
    for source in given:
        np.testing.assert_array_equal(pixels(load_image(source)), np.asarray(noise))


def test_the_result_is_independent_of_the_image_given(noise: Image.Image) -> None:
    before = noise.getpixel((0, 0))
    load_image(noise).putpixel((0, 0), (1, 2, 3))
    assert noise.getpixel((0, 0)) == before


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(noise: Image.Image, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(load_image(encoded(noise, kind, **options))), np.asarray(noise))


# -- kinds of pixels ----------------------------------------------------------------------------------------------


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((0, 1), (0, 0, 0, 51))  # a fifth of black leaves four fifths of white
    assert pixels(load_image(encoded(image))).tolist() == [[[*WHITE], [*RED]], [[204, 204, 204], [*WHITE]]]


def test_gray_with_transparency_is_laid_on_white() -> None:
    image = Image.new("LA", (2, 2), (0, 0))
    image.putpixel((0, 0), (100, 255))
    assert pixels(load_image(encoded(image))).tolist() == [[[100] * 3, [*WHITE]], [[*WHITE], [*WHITE]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(kind: str) -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2, 0])
    data = encoded(image, kind, transparency=1)
    assert pixels(load_image(data)).tolist() == [[[*RED], [*WHITE]], [[*BLUE], [*RED]]]


def test_palette_without_transparency() -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2, 0])
    assert pixels(load_image(encoded(image))).tolist() == [[[*RED], [*GREEN]], [[*BLUE], [*RED]]]


def test_one_transparent_colour_in_an_rgb_image() -> None:
    image = Image.new("RGB", (2, 2), RED)
    image.putpixel((1, 1), GREEN)
    assert pixels(load_image(encoded(image, transparency=GREEN))).tolist() == [[[*RED], [*RED]], [[*RED], [*WHITE]]]


def test_gray_and_one_bit_images() -> None:
    gray = Image.fromarray(np.array([[0, 100], [200, 255]], dtype=np.uint8))
    assert pixels(load_image(encoded(gray)))[..., 1].tolist() == [[0, 100], [200, 255]]
    assert pixels(load_image(encoded(gray.point(lambda v: 255 * (v > 150)).convert("1"))))[..., 0].tolist() == [
        [0, 0],
        [255, 255],
    ]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 300], [32768, 65000, 65535]], dtype=np.uint16)
    found = pixels(load_image(encoded(Image.fromarray(values), kind)))
    assert found[..., 0].tolist() == [[0, 1, 1], [128, 253, 255]]
    assert (found[..., 0] == found[..., 2]).all()


def test_sixteen_bit_gray_with_a_transparent_value() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + struct.pack(">2H", *row) for row in [(0, 1000), (65535, 1000)])
    header = struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 1000)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    assert pixels(load_image(data))[..., 0].tolist() == [[0, 255], [255, 255]]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    for colour in (RED, GREEN, BLUE, WHITE, (90, 60, 200)):
        data = encoded(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=95)
        found = pixels(load_image(data))
        assert np.abs(found.astype(int) - colour).max() <= 3


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(load_image(data)) == RED).all()


# -- orientation --------------------------------------------------------------------------------------------------

STORED_AS: dict[int, Callable[[Image.Image], Image.Image]] = {  # how a camera stores an upright scene
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = STORED_AS[orientation](quarters())
    every: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = every.get(kind, {})
    data = encoded(stored, kind, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        found = pixels(load_image(source))
        assert found.shape == (16, 32, 3)
        np.testing.assert_allclose(found.astype(int), np.asarray(quarters()), atol=3)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(load_image(encoded(quarters(), exif=exif)))
    np.testing.assert_array_equal(found, np.asarray(quarters()))


# -- arrays -------------------------------------------------------------------------------------------------------


def test_arrays_of_each_type_are_scaled_to_bytes() -> None:
    gray = np.array([[0, 128], [51, 255]], dtype=np.uint8)
    for array in (gray, gray[..., None], gray.astype(np.uint16) * 257, gray / 255, (gray / 255).astype(np.float32)):
        assert pixels(load_image(array))[..., 1].tolist() == gray.tolist()
    assert pixels(load_image(gray > 100))[..., 0].tolist() == [[0, 255], [0, 255]]


def test_an_array_with_alpha_is_laid_on_white() -> None:
    array = np.zeros((2, 2, 4), dtype=np.uint8)
    array[0, 0, 3] = 255
    assert pixels(load_image(array))[..., 0].tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 8, 8), dtype=np.uint8), "shape"),
        (np.zeros(8, dtype=np.uint8), "shape"),
        (np.full((4, 4), 200.0), "0..1"),
        (np.full((4, 4), -0.5), "0..1"),
        (np.full((4, 4), np.nan), "0..1"),
        (np.zeros((4, 4), dtype=np.int64), "int64"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "smaller than 2 pixels"),
        (np.zeros((1, 1, 3), dtype=np.uint8), "smaller than 2 pixels"),
    ],
)
def test_arrays_whose_meaning_is_unclear_are_refused(array: np.ndarray[Any, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(array)


# -- what cannot be used ------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90},
    "progressive": {"quality": 90, "progressive": True},
    "PNG": {},
    "WEBP": {"quality": 90},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "compressed TIFF": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "PIL set to accept half files"])
def test_a_file_cut_anywhere_is_an_error_or_shows_every_pixel(
    noise: Image.Image, kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encoded(noise, {"progressive": "JPEG", "compressed TIFF": "TIFF"}.get(kind, kind), **KINDS[kind])
    whole = pixels(load_image(data))
    refused = 0
    cuts = [*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))]
    for cut in cuts:
        try:
            found = pixels(load_image(data[:cut]))
        except ImageError:
            refused += 1
        else:  # only trailing bytes without pixels in them may be missing
            np.testing.assert_array_equal(found, whole)
            assert cut > len(data) - 64 or kind == "TIFF"
    assert refused >= len(cuts) - 13
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF", b"BM"])
)
def test_bytes_that_are_no_image_are_an_image_error(body: bytes, start: bytes) -> None:
    try:
        found = load_image(start + body)
    except ImageError:
        return
    assert min(found.size) >= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_an_image_of_one_pixel_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}, smaller than 2 pixels"):
        load_image(encoded(Image.new("RGB", size)))


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="100 million pixels"):
        load_image(png_header(*size) + b"\0\0\0\0IDAT")


def test_too_many_pixels_in_an_array_or_an_opened_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    for source in (np.zeros((10, 10), dtype=np.uint8), Image.new("L", (10, 10))):
        with pytest.raises(ImageError, match="10x10"):
            load_image(source)
    assert load_image(np.zeros((9, 11), dtype=np.uint8)).size == (11, 9)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_our_limit_counts_and_not_pillows_which_is_below_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)

    def data(width: int, height: int) -> bytes:
        return encoded(Image.new("L", (width, height)), kind)

    assert load_image(data(9, 11)).size == (9, 11)
    with images.read_header(io.BytesIO(data(9, 11))) as header:
        assert header.size == (9, 11)
    with pytest.raises(ImageError, match="image of 10x11 pixels is above"):
        load_image(data(10, 11))
    for size in ((10, 21), (50, 50)):
        with pytest.raises(ImageError, match="image is above"):
            load_image(data(*size))
    assert Image.MAX_IMAGE_PIXELS == 60


def test_a_limit_for_pillow_is_not_doubled() -> None:
    limit = images._Limit(3)
    assert (2 * limit, limit * 2) == (3, 3)


def test_an_icon_is_measured_by_the_image_within(monkeypatch: pytest.MonkeyPatch) -> None:
    within = encoded(Image.new("RGB", (10, 11)), "PNG")
    entry = struct.pack("<4B2H2I", 4, 4, 0, 0, 1, 32, len(within), 22)
    icon = struct.pack("<3H", 0, 1, 1) + entry + within
    assert load_image(icon).size == (10, 11)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="image of 10x11 pixels is above"):
        load_image(icon)


def test_a_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such image file") as caught:
        load_image(tmp_path / "gone.jpg")
    assert caught.value.where == str(tmp_path / "gone.jpg")


def test_where_wins_over_the_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "gone.jpg", where="metadata.jsonl:3")
    assert caught.value.where == "metadata.jsonl:3"


def test_an_error_names_the_key_of_a_reference() -> None:
    with pytest.raises(ImageError) as caught:
        load_image(ImageRef(data=b"no image", key="1f600/noto"))
    assert caught.value.where == "1f600/noto"


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000])
def test_impossible_paths_are_image_errors(name: str) -> None:
    with pytest.raises(ImageError):
        load_image(name)


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match="empty"):
        load_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="empty"):
        load_image(b"")


@pytest.mark.parametrize("url", ["http://example.org/a.png", "https://example.org/a.png"])
def test_the_network_is_not_used(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(url)
    assert caught.value.hint is not None
    assert "download" in caught.value.hint


def test_other_things_are_refused() -> None:
    with pytest.raises(ImageError, match="int"):
        load_image(3)  # type: ignore[arg-type]


def test_formats_that_would_run_another_program_are_not_opened() -> None:
    data = encoded(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(ImageError, match="not an image of a known kind"):
        load_image(data)


def test_unreadable_metadata_does_not_hide_good_pixels(noise: Image.Image) -> None:
    data = encoded(noise, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(pixels(load_image(data)), np.asarray(noise))
