"""The pictures of an evaluation or a run as PNG files: what the pages show goes in, drawn by Matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert.evaluation.embedding_map import EmbeddingMap
from mmbert.evaluation.report import as_described, as_shown
from mmbert.explain.figures import (
    ACCENT,
    FAINT,
    LINE,
    RIGHT,
    WRONG,
    Sheet,
    letters,
    new_figure,
    picture_folder,
    save_figure,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmbert.evaluation.retrieval import Retrieval
    from mmbert.evaluation.run_report import Curve, RunReport

Cells = Sequence[Sequence[float | None]]
Shown = Sequence[Mapping[str, Any]]
TILE, PAD = 1.15, 0.14
"""Inches: of an image in a gallery, and of what lies between two."""
LINE_HEIGHT, INDENT = 0.2, 0.45
SAID_WIDTH = 4.6
"""Inches of a caption that an image found."""


def write_run_pictures(folder: Path, report: RunReport, fonts: Sequence[Path] = ()) -> tuple[list[Path], str]:
    """Every picture of a run's page as a PNG.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        fonts: TrueType fonts to take before those of the machine.

    Returns:
        the files, and characters that no font has.

    Raises:
        UsageError: Matplotlib is not installed, a font is none, or a file cannot be written.
    """
    draw: dict[str, Callable[[], Figure]] = {"curves": lambda: curves_figure(report.curves)}
    if len(report.languages) > 1:
        title = "Captions (rows) whose nearest caption\nin another language (columns) says the same, %"
        draw["languages"] = lambda: heat_figure(report.languages, report.matrix, title)
    draw |= _galleries(report.answers, report.described)
    placed = report.map
    if placed is not None:
        draw["map"] = lambda: map_figure(placed)
    texts = [*_texts(report.answers, report.described), *(curve.name for curve in report.curves), *report.languages]
    return _write(folder, draw, texts, fonts)


def write_gallery_pictures(
    folder: Path, retrieval: Retrieval, per_language: int = 3, fonts: Sequence[Path] = ()
) -> tuple[list[Path], str]:
    """The galleries of an evaluation's page, likewise."""
    answers = as_shown(retrieval.gallery, retrieval.sample(per_language))
    described = as_described(retrieval.gallery, retrieval.sample_images(per_language))
    return _write(folder, _galleries(answers, described), _texts(answers, described), fonts)


def write_heat_map(path: Path, names: Sequence[str], cells: Cells, title: str) -> None:
    """A heat map of fractions as a PNG; errors as of ``write_run_pictures``."""
    with letters([*names, title]):
        save_figure(path, heat_figure(names, cells, title))


def _galleries(answers: Shown, described: Shown) -> dict[str, Callable[[], Figure]]:
    made: dict[str, Callable[[], Figure]] = {}
    if answers:
        made["captions-find-images"] = lambda: answers_figure(answers)
    if described:
        made["images-find-captions"] = lambda: described_figure(described)
    return made


def _texts(answers: Shown, described: Shown) -> list[str]:
    asked = [text for one in answers for text in (one["text"], one["gloss"] or "")]
    said = [text for one in described for line in one["said"] for text in (line["text"], line["gloss"] or "")]
    return [*asked, *said, "✓✗…·→"]


def _write(
    folder: Path, draw: Mapping[str, Callable[[], Figure]], texts: Sequence[str], fonts: Sequence[Path]
) -> tuple[list[Path], str]:
    written = []
    with letters(texts, fonts) as missing:
        into = picture_folder(folder)
        for name, figure in draw.items():
            written.append(into / f"{name}.png")
            save_figure(written[-1], figure())
    return written, missing


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """Each logged figure over the steps, three in a row."""
    columns = min(3, max(1, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    figure = new_figure(3.4 * columns, 1.9 * rows)
    for number, curve in enumerate(curves, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.plot(curve.steps, curve.values, color=ACCENT, linewidth=1.4)
        axes.set_title(curve.name, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.margins(x=0.02)
    return figure


def heat_figure(names: Sequence[str], cells: Cells, title: str) -> Figure:
    """Fractions as colours and whole percents: rows ask, columns answer, nothing where there is no answer."""
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)
    side = max(3.4, 0.34 * len(names) + 1)
    figure = new_figure(side, side + 0.3)
    axes = figure.add_subplot()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        colour = "white" if value > 0.6 else "black"
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=9)
    return figure


def answers_figure(answers: Shown) -> Figure:
    """Each caption with its best images; right ones are framed green, wrong ones red, foreign captions say it in
    English, too.

    Args:
        answers: as ``mmbert.evaluation.report.as_shown`` makes them.
    """
    columns = max(len(one["tiles"]) for one in answers)
    step, height = TILE + PAD, TILE + PAD + 3 * LINE_HEIGHT
    sheet = Sheet(columns * step + PAD, len(answers) * height + PAD)
    width = columns * step - PAD
    for number, one in enumerate(answers):
        top = PAD + number * height
        _heading(sheet, PAD, top + LINE_HEIGHT / 2, width, one)
        if one["gloss"]:
            gloss = shortened(one["gloss"], width - INDENT, 8)
            sheet.text(PAD + INDENT, top + 1.4 * LINE_HEIGHT, gloss, size=8, colour=FAINT)
        for place, tile in enumerate(one["tiles"]):
            left, up = PAD + place * step, top + 2 * LINE_HEIGHT
            sheet.image(left + 0.05, up + 0.05, TILE - 0.1, tile["picture"])
            sheet.frame(left, up, TILE, TILE, RIGHT if tile["right"] else WRONG)
            sheet.text(left, up + TILE + LINE_HEIGHT / 2, _score(tile), size=7, colour=FAINT)
    return sheet.figure


def _heading(sheet: Sheet, left: float, middle: float, width: float, one: Mapping[str, Any]) -> None:
    """Language and text of a query on the left, the rank of the right answer on the right."""
    sheet.text(left, middle, one["language"], size=8, colour=FAINT)
    if "text" in one:
        sheet.text(left + INDENT, middle, shortened(one["text"], width - 1.8, 10), size=10, weight="bold")
    colour = RIGHT if one["any_right"] else WRONG
    sheet.text(left + width, middle, f"right at rank {one['rank']}", size=8, colour=colour, ha="right")


def described_figure(described: Shown) -> Figure:
    """Each image with its best captions of one language, marked and coloured as right or wrong, with their English.

    Args:
        described: as ``mmbert.evaluation.report.as_described`` makes them.
    """
    lines = [sum(2 if said["gloss"] else 1 for said in one["said"]) + 1 for one in described]
    heights = [max(TILE, count * LINE_HEIGHT) + PAD for count in lines]
    left = TILE + 2 * PAD
    sheet = Sheet(left + SAID_WIDTH + PAD, sum(heights) + PAD)
    top = PAD
    for one, height in zip(described, heights, strict=True):
        sheet.image(PAD, top, TILE, one["picture"])
        sheet.frame(PAD, top, TILE, TILE, LINE, 1)
        _heading(sheet, left, top + LINE_HEIGHT / 2, SAID_WIDTH, one)
        middle = top + 1.5 * LINE_HEIGHT
        for said in one["said"]:
            middle = _caption(sheet, left, middle, said)
        top += height
    return sheet.figure


def _caption(sheet: Sheet, left: float, middle: float, said: Mapping[str, Any]) -> float:
    """One caption with its mark and score; where the next line is."""
    colour = RIGHT if said["right"] else WRONG
    sheet.text(left, middle, "✓" if said["right"] else "✗", size=9, colour=colour)
    sheet.text(left + 0.2, middle, shortened(said["text"], SAID_WIDTH - 1.1, 9), colour=colour)
    sheet.text(left + SAID_WIDTH, middle, _score(said), size=7, colour=FAINT, ha="right")
    if said["gloss"]:
        middle += 0.85 * LINE_HEIGHT
        sheet.text(left + 0.2, middle, shortened(said["gloss"], SAID_WIDTH - 1.1, 7), size=7, colour=FAINT)
    return middle + LINE_HEIGHT


def _score(found: Mapping[str, Any]) -> str:
    named = (("cosine", found["cosine"]), ("match", found["match"]))
    return "  ".join(f"{name} {value:.3f}" for name, value in named if value is not None)


def map_figure(placed: EmbeddingMap) -> Figure:
    """Images where their vectors lie, and captions as dots of their language's colour."""
    width, height, side = 9.0, 6.0, 0.34
    foot = 0.3 + 0.2 * (bool(placed.captions) + len(placed.languages) // 14)
    sheet = Sheet(width + 2 * PAD, height + foot + PAD)
    for one in placed.images:
        sheet.image(PAD + one.x * (width - side), PAD + one.y * (height - side), side, one.picture)
    half = side / 2
    spots = [(PAD + half + one.x * (width - side), PAD + half + one.y * (height - side)) for one in placed.captions]
    colours = placed.languages
    sheet.dots(spots, [colours[one.language or ""] for one in placed.captions])
    for number, (language, colour) in enumerate(colours.items()):
        x, y = PAD + number % 14 * 0.62, height + 2.2 * PAD + number // 14 * 0.2
        sheet.dots([(x + 0.05, y)], [colour])
        sheet.text(x + 0.14, y, language, size=8, colour=FAINT)
    captions = f" and {len(placed.captions)} captions" if placed.captions else ""
    caption = f"{len(placed.images)} images{captions}, by {placed.title}"
    sheet.text(PAD, height + foot, caption, size=8, colour=FAINT)
    return sheet.figure
