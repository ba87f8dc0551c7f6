"""Pictures of groundings: candidates with their scores go in, the image with the best of them drawn comes out."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageEnhance

from mmbert.api.grounding import Grounding
from mmbert.errors import UsageError
from mmbert.explain.page import load_font

LONGEST, SHORTEST = 1280, 512
"""Bounds of the picture's longer side: larger images are made smaller, smaller ones larger."""
BEST, OTHER, TRUE, INK, PAPER = (255, 138, 0), (84, 110, 122), (27, 142, 62), (33, 33, 33), (255, 255, 255)
DIMMED = 0.62
"""Brightness outside of the best box."""
SMOOTH = 3
"""Boxes and labels are drawn so many times larger and made smaller, so that edges are smooth."""


def grounding_picture(
    image: Image.Image,
    found: Grounding,
    expression: str,
    *,
    top: int = 3,
    names: Any = None,
    font: Any = None,
    truth: Any = None,
) -> Image.Image:
    """The image with the best candidate lit and framed, the next best ones outlined, and the expression below.

    Args:
        image: the RGB image that was asked about.
        found: candidates and scores.
        expression: what was asked.
        top: candidates that are drawn, the best among them.
        names: [n] what to write beside the candidates' scores; None for nothing.
        font: a TrueType font, for scripts beyond Latin.
        truth: [4] the right box, drawn in green, where it is known.

    Raises:
        UsageError: not a font, or an expression that the font at hand cannot write.
    """
    if font is None and not expression.isascii():
        raise UsageError(f"no letters for {expression!r} at hand", hint="give a font that has them: --font FILE.ttf")
    scale = min(max(max(image.size), SHORTEST), LONGEST) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    unit = max(2, round(max(width, height) / 400))  # thickness of a line
    picture = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    best, *others = found.order(top)
    x1, y1, x2, y2 = _corners(found.boxes[best] * scale, width, height)
    lit = picture.crop((x1, y1, x2, y2))
    picture = ImageEnhance.Brightness(picture).enhance(DIMMED)
    picture.paste(lit, (x1, y1))
    large = picture.resize((width * SMOOTH, height * SMOOTH), Image.Resampling.NEAREST)
    pen = _Pen(ImageDraw.Draw(large, "RGBA"), large.size, unit * SMOOTH, load_font(font, 9 * unit * SMOOTH))
    for number in reversed(others):
        pen.frame(found.boxes[number] * scale * SMOOTH, (*PAPER, 190), 1, _label(found, number, names), OTHER)
    pen.frame(found.boxes[best] * scale * SMOOTH, BEST, 2, _label(found, best, names), BEST)
    if truth is not None:
        pen.frame([edge * scale * SMOOTH for edge in truth], TRUE, 1, "right", TRUE)
    drawn = large.resize((width, height), Image.Resampling.LANCZOS)
    return _with_caption(drawn, expression, load_font(font, 12 * unit), unit)


class _Pen:
    """Draws frames with labels that stay within the picture."""

    def __init__(self, pen: ImageDraw.ImageDraw, size: tuple[int, int], unit: int, font: Any) -> None:
        self.pen, self.size, self.unit, self.font = pen, size, unit, font

    def frame(self, box: Any, colour: Any, lines: int, label: str, ground: tuple[int, int, int]) -> None:
        """One box; its label sits on its upper edge, or inside of it where there is no room above."""
        x1, y1, x2, y2 = _corners(box, *self.size)
        width = lines * self.unit
        self.pen.rounded_rectangle((x1, y1, x2, y2), radius=2 * self.unit, outline=colour, width=width)
        left, top, right, bottom = self.pen.textbbox((0, 0), label, font=self.font)
        pad = 2 * self.unit
        wide, high = right - left + 2 * pad, bottom - top + 2 * pad
        x = min(x1, self.size[0] - wide)
        y = y1 - high + width if y1 - high + width >= 0 else y1
        self.pen.rounded_rectangle((x, y, x + wide, y + high), radius=2 * self.unit, fill=ground)
        self.pen.text((x + pad - left, y + pad - top), label, fill=PAPER, font=self.font)


def _label(found: Grounding, number: int, names: Any) -> str:
    score = f"{100 * float(found.scores[number]):.0f} %"
    name = "" if names is None else str(names[number])
    return f"{name} {score}" if name.isascii() and name else score


def _corners(box: Any, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, within the picture and not empty."""
    x1, y1 = min(max(round(float(box[0])), 0), width - 1), min(max(round(float(box[1])), 0), height - 1)
    return x1, y1, min(max(round(float(box[2])), x1 + 1), width), min(max(round(float(box[3])), y1 + 1), height)


def _with_caption(picture: Image.Image, text: str, font: Any, unit: int) -> Image.Image:
    """The picture on paper, the text below it, in as many lines as it takes."""
    pad, probe = 6 * unit, ImageDraw.Draw(picture)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and probe.textlength(longer, font=font) > picture.width - 2 * pad:
            lines.append(word)
        else:
            lines[-1:] = [longer]
    written = "\n".join(lines)
    _, top, _, bottom = probe.multiline_textbbox((0, 0), written, font=font, spacing=3 * unit)
    sheet = Image.new("RGB", (picture.width, picture.height + round(bottom - top) + 2 * pad), PAPER)
    sheet.paste(picture, (0, 0))
    place = (pad, picture.height + pad - top)
    ImageDraw.Draw(sheet).multiline_text(place, written, fill=INK, font=font, spacing=3 * unit)
    return sheet
