"""Examples of what a model answers, for whoever watches a run: answers go in, a table and pictures come out."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from mmbert.data.records import ImageRef
from mmbert.errors import ImageError
from mmbert.explain.page import load_font
from mmbert.vision.images import load_image

if TYPE_CHECKING:
    from mmbert.evaluation.retrieval import Answer, Found, Retrieval

MOST = 8
"""Examples of one evaluation."""
RIGHT, WRONG, INK, FAINT, PAPER = (27, 142, 62), (201, 48, 44), (33, 33, 33), (117, 117, 117), (255, 255, 255)
SIDE, MAT, FRAME, GAP, LINE = 160, 4, 6, 14, 26
"""Pixels: of a picture with the paper around it, that paper, the frame, what lies between two, a line of text."""


@dataclass(frozen=True)
class Examples:
    """What was asked, what the model answered, and what would have been right.

    Attributes:
        columns: what the cells of a row are.
        rows: one for each question.
        pictures: RGB pictures by name.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def as_markdown(self) -> str:
        """The table, as TensorBoard shows it."""
        lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (self.columns, *self.rows)]
        return "\n".join([lines[0], "|" + "---|" * len(self.columns), *lines[1:]])


Show = Callable[[], Examples]
"""Makes the examples; called right after the measurement, while the model is still the one that was measured."""


def _cell(text: str) -> str:
    """A text that Markdown takes for nothing else."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"&#{ord(c)};" if c in "\\`*_[]|~#" else c for c in plain)


def spread(count: int, most: int = MOST) -> list[int]:
    """Numbers below ``count``, ``most`` of them where there are as many: one from each stretch, the same each time.

    Where in its stretch a number lies differs (by the golden ratio): texts of several languages often stand in the
    same order, and equal steps would find the same one in each.
    """
    most = min(most, count)
    ends = [i * count // max(1, most) for i in range(most + 1)]
    return [ends[i] + int((i + 1) * 0.618034 % 1 * (ends[i + 1] - ends[i])) for i in range(most)]


def picture_of(image: ImageRef | None) -> Image.Image | None:
    """The image, if it can be opened (in a run on stored regions it need not be there)."""
    try:
        return None if image is None else load_image(image)
    except ImageError:
        return None


def retrieval_examples(found: Retrieval, k: int = 5) -> Examples:
    """Texts spread over all languages with their ``k`` best images: a table, and a picture of the images.

    The texts are the same at each evaluation of a run, so that one sees how answers change.
    """
    gallery = found.gallery
    askable = np.flatnonzero(np.isin(gallery.text_group, gallery.image_group))
    answers = [found.answer(int(askable[i]), k) for i in spread(len(askable))]
    rows = []
    for number, answer in enumerate(answers, 1):
        best = gallery.names.get(int(gallery.image_group[answer.found[0].image]), "")
        rows.append((str(number), answer.language, answer.text, answer.gloss or "", best, str(answer.rank)))
    picture = gallery_picture(answers, gallery.images)
    return Examples(
        ("query", "language", "text", "in English", "first image found", "rank of the right one"),
        rows,
        {"text_to_image": picture},
    )


def gallery_picture(answers: Sequence[Answer], images: Sequence[ImageRef]) -> Image.Image:
    """Each query with its best images, in a row; right ones are framed green, wrong ones red.

    Args:
        answers: as ``Retrieval.answer`` gives them.
        images: of the gallery.
    """
    columns = max(len(answer.found) for answer in answers)
    step = SIDE + 2 * FRAME + GAP
    row = LINE + step + LINE
    sheet = Image.new("RGB", (GAP + columns * step, GAP + len(answers) * row), PAPER)
    pen, large, small = ImageDraw.Draw(sheet), load_font(None, 17), load_font(None, 13)
    for number, answer in enumerate(answers, 1):
        top = GAP + (number - 1) * row
        _header(pen, (GAP, top), answer, number, sheet.width - 2 * GAP, large)
        for place, one in enumerate(answer.found):
            left = GAP + place * step
            sheet.paste(_tile(images[one.image], one.right), (left, top + LINE))
            label = _scores(one)
            pen.text((left + FRAME, top + LINE + SIDE + 2 * FRAME + 3), label, fill=FAINT, font=small)
    return sheet


def _header(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], answer: Answer, number: int, width: int, font: object
) -> None:
    """The query, cut to the width, and how the right image ranks; letters that are not at hand stay out."""
    glossed = [] if answer.gloss is None else [f"({answer.gloss})"]
    shown = next((text for text in (answer.text, *glossed) if text.isascii()), "(see the table)")
    hit = any(one.right for one in answer.found)
    ending = f"rank {answer.rank}"
    room = width - pen.textlength(ending, font=font) - GAP  # type: ignore[arg-type]
    text = f"{number}  {answer.language}  {shown}"
    while pen.textlength(text, font=font) > room:  # type: ignore[arg-type]
        text = text[:-4].rstrip() + "..."
    pen.text(place, text, fill=INK, font=font)  # type: ignore[arg-type]
    right = place[0] + width
    pen.text((right, place[1]), ending, fill=RIGHT if hit else WRONG, font=font, anchor="ra")  # type: ignore[arg-type]


def _tile(image: ImageRef, right: bool) -> Image.Image:
    """The image on a square of paper with its frame; a grey square where it cannot be opened."""
    opened = picture_of(image)
    size = (SIDE - 2 * MAT, SIDE - 2 * MAT)
    inner = (
        Image.new("RGB", size, (224, 224, 224))
        if opened is None
        else ImageOps.pad(opened, size, Image.Resampling.LANCZOS, color=PAPER)
    )
    return ImageOps.expand(ImageOps.expand(inner, MAT, PAPER), FRAME, RIGHT if right else WRONG)


def _scores(found: Found) -> str:
    named: Iterable[tuple[str, float | None]] = (("cosine", found.cosine), ("match", found.match))
    return "  ".join(f"{name} {value:.2f}" for name, value in named if value is not None)
