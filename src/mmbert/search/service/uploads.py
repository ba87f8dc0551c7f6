"""What comes in from outside: bodies of bounded size, and images that are what they say they are.

An image is judged by its content, never by its name, and its size is looked at before its pixels are decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
from functools import cache
from typing import Any

from PIL import Image

from mmbert.errors import ImageError
from mmbert.vision.images import MAX_PIXELS, load_image, read_header

FORMATS = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
}
"""Kinds of images that are taken in and given out, with their media types."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode_image(encoded: str, max_pixels: int) -> Image.Image:
    """An upright RGB image of base64 text, in lines or not (a ``data:`` URL too).

    Raises:
        ImageError: no base64, no image of a known kind, damaged, or of too many pixels.
    """
    encoded = "".join(encoded.split())
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the image is not base64: {error}", hint="encode the file's bytes, as base64 FILE") from error
    return open_image(data, max_pixels)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The same of encoded bytes."""
    most = f"send one of at most {min(max_pixels, MAX_PIXELS):,}"
    try:
        with read_header(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
    except ImageError as error:
        raise ImageError(f"the {error.message}", hint=most) from error
    except Exception as error:  # decoders raise almost anything
        raise ImageError("not an image of a known kind", hint="JPEG, PNG, WebP, GIF, BMP or AVIF") from error
    if width * height > max_pixels:
        raise ImageError(f"the image has {width}x{height} pixels", hint=most)
    return load_image(data, where="the image")


def media_type(data: bytes) -> str | None:
    """Media type of an image by its content; None where it is none that may be given out."""
    try:
        with read_header(io.BytesIO(data), formats=_formats()) as image:
            return FORMATS.get(str(image.format))
    except Exception:
        return None


def thumbnail(data: bytes, side: int) -> bytes:
    """A WebP whose longer side has at most ``side`` pixels.

    Raises:
        ImageError: the image is damaged.
    """
    image = load_image(data, where="the image", keep_alpha=True)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=82, method=2)
    return out.getvalue()


class BodyLimit:
    """Refuses bodies above a number of bytes, whether or not the request says its length (ASGI).

    Args:
        app: what is protected.
        most: bytes.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > self.most:
            await self._refuse(send)
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.most:
                await self._refuse(send)
                return
        body = b"".join(parts)
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, send: Any) -> None:
        body = f'{{"error":{{"message":"the request is too large","hint":"at most {self.most:,} bytes"}}}}'.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
