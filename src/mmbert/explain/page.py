"""Pictures of attention: maps go in, a self-contained page or a PNG a person can look at comes out."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmbert import __version__, html
from mmbert.errors import UsageError
from mmbert.explain.attention import AttentionMaps
from mmbert.files import whole_file

Array: TypeAlias = np.ndarray[Any, Any]
SIDE = 224
HEAT = (255, 138, 0)
MOST_HEADS = 48
"""Small matrices on a page; of larger networks the page shows the mean over heads of each layer."""


def explain_page(
    maps: AttentionMaps,
    image: Image.Image,
    *,
    layer: int | None = None,
    head: int | None = None,
    facts: Iterable[tuple[str, Any]] = (),
) -> str:
    """A page: the image once for each word with what the word looks at; lines from what looks to what is looked at, of
    one layer and of all (the head view and the model view of BertViz, Vig 2019); regions by regions; every head.

    Args:
        maps: as ``attention_maps`` gives them.
        image: the RGB image they are of.
        layer, head: shown large; the mean over all where None.
        facts: name and value of what a reader should know.

    Raises:
        UsageError: there is no such layer or head.
    """
    words = [
        {"text": word, "cells": _cells(maps, row), "whole": float(row[0] / row.sum().clip(1e-9))}
        for word, row in zip(maps.words, maps.word_to_region(layer, head), strict=True)
    ]
    shown = [("Match", f"{100 * maps.match:.1f} %")] if maps.match is not None else []
    return html.render(
        "explain.html",
        title="What the model looks at",
        facts=[*facts, *shown, ("Shown", which(layer, head))],
        version=__version__,
        caption=maps.caption,
        image=html.thumbnail(image, 448),
        aspect=f"{image.width} / {image.height}",
        words=words,
        regions=_matrix(maps.region_to_region(layer, head)[1:, 1:]),
        heads=_heads(maps),
        views=_views(maps, layer, head),
        script=html.script("attention.js"),
    )


def write_explain_page(path: Path, maps: AttentionMaps, image: Image.Image, **options: Any) -> None:
    """``explain_page`` into a file."""
    html.write_page(path, explain_page(maps, image, **options))


def explain_picture(
    maps: AttentionMaps, image: Image.Image, *, layer: int | None = None, head: int | None = None, font: Any = None
) -> Image.Image:
    """The image, then once for each word with what the word looks at, as one picture.

    Args:
        font: a TrueType font for the labels; without it words beyond Latin letters are numbered.
    """
    lettering = load_font(font, 18)
    tiles = [(image.convert("RGB"), "")]
    for number, (word, row) in enumerate(zip(maps.words, maps.word_to_region(layer, head), strict=True), 1):
        drawable = font is not None or word.isascii()
        tiles.append((lit(image, maps, row), word if drawable else str(number)))
    columns = min(len(tiles), 6)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + 8) + 8, rows * (SIDE + 36) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (tile, label) in enumerate(tiles):
        left, top = 8 + (place % columns) * (SIDE + 8), 8 + (place // columns) * (SIDE + 36)
        sheet.paste(ImageOps.pad(tile, (SIDE, SIDE), color="white"), (left, top))
        pen.text((left + 2, top + SIDE + 4), label, fill="black", font=lettering)
    return sheet


def load_font(font: Any, size: int) -> Any:
    """A TrueType font in a size in pixels; None: the one at hand, which knows Latin letters.

    Raises:
        UsageError: not a font.
    """
    try:
        return ImageFont.load_default(size) if font is None else ImageFont.truetype(font, size)
    except OSError as error:
        raise UsageError(f"not a font: {font}", hint="give a .ttf or .otf file") from error


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG; an interrupted write leaves nothing under that name.

    Raises:
        UsageError: the file cannot be written.
    """
    with whole_file(path) as part:
        picture.save(part, "PNG")


def strengths(row: Array) -> Array:
    """[R] attention to regions to [R - 1] in 0..1: the whole image left out, least is 0, most is 1."""
    parts = row[1:]
    if not len(parts):
        return parts
    low, high = parts.min(), parts.max()
    return (parts - low) / (high - low) if high > low else np.zeros_like(parts)


def _cells(maps: AttentionMaps, row: Array) -> list[dict[str, str]]:
    """Rectangles over the image in fractions of it."""
    return [
        {
            "x": f"{left:.4f}",
            "y": f"{top:.4f}",
            "width": f"{right - left:.4f}",
            "height": f"{bottom - top:.4f}",
            "strength": f"{0.8 * value:.3f}",
        }
        for (left, top, right, bottom), value in zip(maps.boxes[1:].tolist(), strengths(row).tolist(), strict=True)
    ]


def _matrix(weights: Array) -> dict[str, Any]:
    """A heat map: its rows and columns, and its cells from the least (clear) to the most (full)."""
    low = float(weights.min()) if weights.size else 0.0
    spread = (float(weights.max()) - low if weights.size else 0.0) or 1.0
    cells = [
        (x, y, f"{(weights[y, x] - low) / spread:.3f}", f"{weights[y, x]:.4f}")
        for y in range(weights.shape[0])
        for x in range(weights.shape[1])
    ]
    return {"rows": weights.shape[0], "columns": weights.shape[1], "cells": cells}


def _views(maps: AttentionMaps, layer: int | None, head: int | None) -> dict[str, Any] | None:
    """What the script draws; weights as whole numbers of 16 bits, little end first, in base64."""
    if maps.raw is None:
        return None
    layers, heads = maps.raw.shape[:2]
    numbers = np.rint(maps.raw.clip(0, 1) * 65535).astype("<u2")
    return {
        "names": list(maps.positions),
        "tokens": len(maps.tokens),
        "boxes": [[round(edge, 4) for edge in box] for box in maps.boxes.tolist()],
        "layers": layers,
        "heads": heads,
        "layer": layer,
        "head": head,
        "weights": base64.b64encode(numbers.tobytes()).decode("ascii"),
    }


def _heads(maps: AttentionMaps) -> list[dict[str, Any]]:
    return [
        {"name": which(layer, head), "map": _matrix(maps.word_to_region(layer, head))}
        for layer, head in shown_heads(maps)
    ]


def shown_heads(maps: AttentionMaps) -> list[tuple[int, int | None]]:
    """Layer and head of every small matrix; every layer alone (head None) where there are too many heads."""
    layers, heads = maps.weights.shape[:2]
    if layers * heads <= MOST_HEADS:
        return [(layer, head) for layer in range(layers) for head in range(heads)]
    return [(layer, None) for layer in range(layers)]


def which(layer: int | None, head: int | None) -> str:
    """What is shown, in words."""
    return f"{'all layers' if layer is None else f'layer {layer}'}, {'all heads' if head is None else f'head {head}'}"


def lit(image: Image.Image, maps: AttentionMaps, row: Array) -> Image.Image:
    """The image in grey with regions as bright as the attention they get."""
    grey = ImageOps.grayscale(image).point(lambda value: int(value * 0.75)).convert("RGB")
    light = Image.new("RGB", image.size, HEAT)
    mask = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(mask)
    for (left, top, right, bottom), value in zip(maps.boxes[1:].tolist(), strengths(row).tolist(), strict=True):
        box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        pen.rectangle(box, fill=round(204 * value))
    return Image.composite(light, grey, mask)
