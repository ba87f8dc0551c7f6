"""A contact sheet: pictures with their captions below them.

    python tools/scenes/sheet.py DATA OUT.png [FONT.ttf]

shows eight test pictures of what ``build_scenes.py`` wrote, with their English, German and vague captions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE, _FONT = 14, 14, 12
_INKS = ((30, 30, 30), (20, 80, 160), (150, 60, 20))  # one caption after the other


def contact_sheet(
    pictures: Sequence[tuple[Image.Image, Sequence[str]]], columns: int, font_file: str | None = None
) -> Image.Image:
    """Pictures of one size in rows; each caption is broken into lines as wide as its picture.

    Args:
        pictures: image and captions.
        columns: pictures in a row.
        font_file: a TrueType font; that of Pillow, which is for plain English, where not given.
    """
    font = ImageFont.load_default(_FONT) if font_file is None else ImageFont.truetype(font_file, _FONT)
    side = pictures[0][0].width
    told = [
        [
            (line, _INKS[number % len(_INKS)])
            for number, text in enumerate(captions)
            for line in _lines(text, font, side)
        ]
        for _, captions in pictures
    ]
    height = side + 4 + _LINE * max(map(len, told)) + _GAP
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + _GAP) + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, ((image, _), lines) in enumerate(zip(pictures, told, strict=True)):
        x, y = _GAP + number % columns * (side + _GAP), _GAP + number // columns * height
        sheet.paste(image, (x, y))
        pen.rectangle((x - 1, y - 1, x + side, y + side), outline=(200, 200, 200))
        for place, (line, ink) in enumerate(lines):
            pen.text((x, y + side + 4 + place * _LINE), line, fill=ink, font=font)
    return sheet


def _lines(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most ``width`` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def main(data: Path, out: Path, font_file: str | None = None) -> None:
    """Write the sheet of a folder that ``build_scenes.py`` made."""
    rows, vague = (
        {row["file_name"]: row for row in map(json.loads, (data / name / "metadata.jsonl").open(encoding="utf-8"))}
        for name in ("scenes", "vague")
    )
    test = [name for name, row in rows.items() if row["split"] == "test"]
    kinds = (
        [name for name in test if name in vague and rows[name]["objects"].count(",") == 1],
        [name for name in test if rows[name]["objects"].count(",") == 2],
        [name for name in test if name not in vague],
    )
    chosen = [*kinds[0][:3], kinds[2][0], *kinds[1][:3], kinds[2][1]]
    pictures = []
    for name in chosen:
        told = [rows[name]["caption_en"], rows[name]["caption_de"]]
        told += [vague[name]["caption_en"]] if name in vague else []
        pictures.append((Image.open(data / "scenes" / name).convert("RGB"), told))
    contact_sheet(pictures, 4, font_file).quantize(200, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
