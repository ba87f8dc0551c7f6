"""Opening images: anything that names or holds an image goes in, an upright RGB ``PIL.Image`` comes out.

Nothing is guessed at silently: a damaged, missing or unusable image is an ``ImageError``.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageFile

from mmbert.errors import ImageError

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before they are decoded; for others nobody is warned of their size."""
MIN_SIDE = 2

_GET_AGAIN = "get the file again or remove it"

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
# EPS and the like stay out: opening one would run another program.

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .jp2 .avif .ico .tga".split()
)
"""Endings of file names that count as images when a folder is searched (compare in lower case)."""

_UPRIGHT = {  # EXIF orientation (tag 0x0112) -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Reference(Protocol):
    """What ``load_image`` needs of an ``ImageRef``."""

    @property
    def path(self) -> str | None: ...
    @property
    def data(self) -> bytes | None: ...
    @property
    def key(self) -> str: ...


ImageSource: TypeAlias = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Reference


def load_image(source: ImageSource, *, where: str | None = None, keep_alpha: bool = False) -> Image.Image:
    """Open ``source`` as an upright 8-bit RGB image.

    EXIF orientation is applied; transparent parts are laid on white; palette, gray, 16-bit gray and CMYK are
    converted. Of an animation the first frame is taken.

    Args:
        source: path or ``file://`` URL, encoded bytes, PIL image, ``ImageRef``, or an array: ``[height, width]``
            or ``[height, width, 1 | 3 | 4]`` of uint8, uint16 (full range), bool or float in 0..1.
        where: what to call the image in an error; its path or key where not given.

        keep_alpha: give RGBA with the transparency as it is, instead of laying it on white.

    Returns:
        PIL image of mode RGB (RGBA with ``keep_alpha``), independent of ``source``.

    Raises:
        ImageError: missing, damaged, cut short, not an image, above 100 million pixels, or a side below 2 pixels.
    """
    image = _opened(source, where)
    if keep_alpha:
        return image.convert("RGBA")
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _opened(source: ImageSource, where: str | None) -> Image.Image:
    """The image upright, RGB or (where it has transparency) RGBA."""
    if isinstance(source, np.ndarray):
        return _from_array(source, where)
    if isinstance(source, Image.Image):
        return _decode(source, where or getattr(source, "filename", "") or None).copy()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open(io.BytesIO(source), where)
    if isinstance(source, (str, Path)):
        return _open(_local_path(source, where), where or str(source))
    path, data = getattr(source, "path", None), getattr(source, "data", None)
    if data is not None:
        return _open(io.BytesIO(data), where or source.key or None)
    if path is not None:
        return _open(_local_path(path, where), where or path)
    raise ImageError(
        f"cannot make an image of a {type(source).__name__}",
        where=where,
        hint="give a path, encoded bytes, a PIL image, an array or an ImageRef",
    )


def _local_path(source: str | Path, where: str | None) -> Path:
    text = str(source)
    where = where or text
    if text.startswith(("http://", "https://")):
        raise ImageError("images are not fetched from the network", where=where, hint="download the file first")
    path = Path(url2pathname(urlsplit(text).path)) if text.startswith("file://") else Path(source)
    try:
        if path.is_file():
            return path
        what = "is a folder, not an image" if path.is_dir() else "no such image file"
    except (OSError, ValueError) as error:  # name too long, null byte, no permission
        raise ImageError(f"not a usable path: {error}", where=where) from error
    raise ImageError(what, where=where, hint="check the path" if path.is_absolute() else f"looked in {Path.cwd()}")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def read_header(
    file: str | Path | io.BytesIO, *, formats: tuple[str, ...] | None = None, where: str | None = None
) -> Iterator[Image.Image]:
    """An image of which only the beginning has been read: its format, its size, its metadata.

    Args:
        formats: that it may have, by Pillow's names; None: any.

    Raises:
        ImageError: above 100 million pixels. And what Pillow raises on a file that is none or damaged.
    """
    with _our_rules():
        try:
            image = Image.open(file, formats=formats)
        except Image.DecompressionBombError as error:
            raise _too_large(where) from error
    with image:
        yield image


def _open(file: Path | io.BytesIO, where: str | None) -> Image.Image:
    try:
        with read_header(file, formats=_formats(), where=where) as image:
            return _decode(image, where)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        empty = file.stat().st_size == 0 if isinstance(file, Path) else not file.getbuffer().nbytes
        raise ImageError(
            "the file is empty" if empty else "not an image of a known kind, or its start is damaged",
            where=where,
            hint="use JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF",
        ) from error
    except Exception as error:  # decoders raise almost anything on damaged input
        raise _damaged(error, where) from error


def _decode(image: Image.Image, where: str | None) -> Image.Image:
    _check_size(image.size, where)
    try:
        if image.format in ("JPEG", "MPO") and not _jpeg_has_its_end(image):
            raise ImageError("damaged or cut short: the file has no end mark", where=where, hint=_GET_AGAIN)
        with _our_rules():
            image.load()
        return _upright(_to_colour(image, where), image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # one within: of an icon, a tile
        raise _too_large(where) from error
    except Exception as error:
        raise _damaged(error, where) from error


def _jpeg_has_its_end(image: Image.Image) -> bool:
    """Whether an end mark follows the first scan.

    A download that broke off may be filled up with zeros; the decoder makes grey of them and does not complain.
    """
    file = getattr(image, "fp", None)
    if file is None:  # decoded before
        return True
    before = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(before)
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        marker = data[at + 1]
        alone = marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8  # fill bytes and marks without a body
        at += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(b"\xff\xd9", at) >= 0  # within a scan, 0xff is always followed by zero


class _Limit(int):
    """A limit above which Pillow refuses without warning: it refuses above twice a limit, and twice this is this."""

    def __mul__(self, other: int) -> int:
        return int(self)

    __rmul__ = __mul__


_rules_lock = threading.Lock()
_rules_users = 0
_rules_before: tuple[bool, int | None] = (False, None)


@contextmanager
def _our_rules() -> Iterator[None]:
    """Rules that Pillow has for the whole process are ours in here.

    Some libraries let it accept half images; here those would pass as grey ones. And it warns of images that are below
    our limit. Up to twice that it may open, so that an error can say how large the image is.
    """
    global _rules_users, _rules_before
    with _rules_lock:
        if _rules_users == 0:
            _rules_before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, _Limit(2 * MAX_PIXELS)
        _rules_users += 1
    try:
        yield
    finally:
        with _rules_lock:
            _rules_users -= 1
            if _rules_users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = _rules_before


def _upright(rgb: Image.Image, opened: Image.Image) -> Image.Image:
    try:
        orientation = opened.getexif().get(0x0112)
    except Exception:  # unreadable metadata says nothing about the pixels: show them as stored, as viewers do
        return rgb
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def _to_colour(image: Image.Image, where: str | None) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_gray(image, where)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("RGB")


def _deep_gray(image: Image.Image, where: str | None) -> Image.Image:
    """Gray of more than 8 bits: 0..65535 (or 0..1 for float) is scaled to 0..255; PIL alone would clip it."""
    values = np.asarray(image)
    if image.mode == "F":
        return _from_array(values, where)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"gray values {values.min()}..{values.max()} are outside 16 bits", where=where, hint="save it with 8 bits"
        )
    gray = _to_bytes(values.astype(np.uint16), where)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[values == clear] = 255
    return Image.fromarray(gray).convert("RGB")


def _from_array(array: np.ndarray[Any, Any], where: str | None) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"array of shape {list(shape)} is not an image",
            where=where,
            hint="use [height, width] or [height, width, 1, 3 or 4]",
        )
    _check_size((shape[1], shape[0]), where)
    return _to_colour(Image.fromarray(np.ascontiguousarray(_to_bytes(array, where))), where)


def _to_bytes(array: np.ndarray[Any, Any], where: str | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Scale the full range of the type to uint8; same shape."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if bool(((array >= 0) & (array <= 1)).all()):  # False for NaN too
            return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
        raise ImageError("float pixels must lie in 0..1", where=where, hint="divide by the largest value, or use uint8")
    raise ImageError(f"pixels of type {array.dtype} have no known range", where=where, hint="convert to uint8")


def _check_size(size: tuple[int, int], where: str | None) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(where, size)
    if min(size) < MIN_SIDE:
        raise ImageError(f"image is {width}x{height}, smaller than 2 pixels", where=where)


def _too_large(where: str | None, size: tuple[int, int] | None = None) -> ImageError:
    shown = f"image of {size[0]}x{size[1]} pixels" if size else "image"
    return ImageError(f"{shown} is above {MAX_PIXELS // 1_000_000} million pixels", where=where, hint="shrink it first")


def _damaged(error: Exception, where: str | None) -> ImageError:
    return ImageError(f"damaged or cut short: {error}", where=where, hint=_GET_AGAIN)
