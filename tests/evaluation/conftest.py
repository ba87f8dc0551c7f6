"""Records of coloured pictures, and the model that understands them."""

from __future__ import annotations

import io

import pytest
from colours import NAMES, ColourModel, picture

from mmbert.data.records import ImageRef, Record


def encoded(colour: str) -> bytes:
    buffer = io.BytesIO()
    picture(colour).save(buffer, "PNG")
    return buffer.getvalue()


def colour_record(colour: str, *, dark: bool = False, **changes: object) -> Record:
    key = f"dark {colour}" if dark else colour
    words = {"en": "dark ", "de": "dunkel ", "fr": "foncé ", "ar": "غامق "}
    captions = {lang: ((words[lang] if dark else "") + name,) for lang, name in NAMES[colour].items()}
    fields = {
        "id": key,
        "image": ImageRef(data=encoded(key), key=key),
        "captions": captions,
        "origin": f"colours:{key}",
    }
    return Record(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def model() -> ColourModel:
    return ColourModel()


@pytest.fixture
def records() -> list[Record]:
    """Six plain colours."""
    return [colour_record(colour) for colour in NAMES]


@pytest.fixture
def shades() -> list[Record]:
    """Plain and dark colours: the cosine cannot tell them apart, the match score can."""
    return [colour_record(colour, dark=dark) for colour in NAMES for dark in (True, False)]
