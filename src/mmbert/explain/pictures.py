"""Every picture of an attention page as a PNG: words, regions, heads, the head view and the model view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmbert.explain.attention import AttentionMaps
from mmbert.explain.figures import (
    INK,
    LINE,
    Sheet,
    letters,
    new_figure,
    picture_folder,
    save_figure,
    shortened,
)
from mmbert.explain.page import Array, lit, shown_heads, which

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILE, PAD, COLUMNS, STEP = 1.4, 0.12, 6, 1.12
ROW = 0.19
"""Inches of a line of text in the head view."""
LEAST, MOST_LINES, MOST_SMALL = 0.004, 1000, 400
"""Weaker attention is no line; and the most lines of a head, in the head view and in the model view."""


def write_attention_pictures(
    folder: Path,
    maps: AttentionMaps,
    image: Image.Image,
    *,
    layer: int | None = None,
    head: int | None = None,
    fonts: Sequence[Path] = (),
) -> tuple[list[Path], str]:
    """``words.png``, ``regions.png``, ``heads.png``, ``head-view.png`` and ``model-view.png``.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        maps, image, layer, head: as for ``mmbert.explain.page.explain_page``.
        fonts: TrueType fonts to take before those of the machine.

    Returns:
        the files, and characters that no font has.

    Raises:
        UsageError: there is no such layer or head, Matplotlib is not installed, a font is none, or a file cannot be
            written.
    """
    looks = maps.word_to_region(layer, head)
    draw: dict[str, Callable[[], Figure]] = {"words": lambda: words_figure(maps, image, looks)}
    if len(maps.boxes) > 1:
        title = f"Region (row) to region (column), {which(layer, head)}"
        draw["regions"] = lambda: regions_figure(maps.region_to_region(layer, head)[1:, 1:], title)
    draw["heads"] = lambda: heads_figure(maps)
    raw = maps.raw
    if raw is not None:
        draw["head-view"] = lambda: head_view_figure(maps, raw, layer, head)
        draw["model-view"] = lambda: model_view_figure(raw)
    written = []
    with letters([*maps.words, *maps.tokens, "…"], fonts) as missing:
        into = picture_folder(folder)
        for name, figure in draw.items():
            written.append(into / f"{name}.png")
            save_figure(written[-1], figure())
    return written, missing


def words_figure(maps: AttentionMaps, image: Image.Image, looks: Array) -> Figure:
    """The image, then once for each word, regions bright that the word looks at.

    Args:
        looks: [W, R] attention of words to regions.
    """
    tiles = [(image.convert("RGB"), "")] + [
        (lit(image, maps, row), word) for word, row in zip(maps.words, looks, strict=True)
    ]
    columns = min(len(tiles), COLUMNS)
    rows = -(-len(tiles) // columns)
    sheet = Sheet(columns * (TILE + PAD) + PAD, rows * (TILE + 0.3) + PAD)
    for place, (tile, label) in enumerate(tiles):
        left, top = PAD + place % columns * (TILE + PAD), PAD + place // columns * (TILE + 0.3)
        sheet.image(left, top, TILE, tile)
        sheet.text(left, top + TILE + 0.12, shortened(label, TILE, 9))
    return sheet.figure


def regions_figure(weights: Array, title: str) -> Figure:
    """Regions by regions, numbered from 1 as in ``mmbert explain``; the whole image is left out."""
    side = min(9.0, max(3.2, 0.26 * len(weights) + 1.0))
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    ticks = np.unique(np.linspace(0, len(weights) - 1, min(len(weights), 20)).astype(int))
    shown = axes.imshow(weights, cmap="Oranges")
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
    axes.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    return figure


def heads_figure(maps: AttentionMaps) -> Figure:
    """Words by regions of every head, as on the page."""
    chosen = shown_heads(maps)
    columns = min(len(chosen), 6)
    rows = -(-len(chosen) // columns)
    high = max(0.5, min(2.0, 1.5 * len(maps.words) / max(4, len(maps.boxes)))) + 0.3
    figure = new_figure(1.7 * columns, high * rows)
    for number, (layer, head) in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(maps.word_to_region(layer, head), cmap="Oranges", aspect="auto", interpolation="nearest")
        axes.set_title(which(layer, head), fontsize=7)
        axes.set_xticks([])
        axes.set_yticks(range(len(maps.words)), maps.words if number % columns == 1 else [""] * len(maps.words))
        axes.tick_params(labelsize=6, length=0)
    return figure


def head_view_figure(maps: AttentionMaps, raw: Array, layer: int | None, head: int | None) -> Figure:
    """Positions that look on the left, those looked at on the right, a line for each head's attention."""
    names = maps.positions
    weights = raw.mean(axis=0) if layer is None else raw[layer]
    heads = range(len(weights)) if head is None else [head]
    figure = new_figure(6.4, max(2.0, ROW * len(names) + 0.5))
    axes = figure.add_subplot()
    for number in heads:
        _lines(axes, weights[number], _colour(number, len(weights)), 1.2, MOST_LINES, len(heads) ** -0.5)
    for place, name in enumerate(names):
        axes.text(-0.04, place, shortened(name, 1.9, 8), ha="right", va="center", fontsize=8, color=INK)
        axes.text(1.04, place, shortened(name, 1.9, 8), ha="left", va="center", fontsize=8, color=INK)
    axes.set(xlim=(-0.9, 1.9), ylim=(len(names) - 0.3, -0.7))
    axes.set_axis_off()
    axes.set_title(f"Attention (from left to right), {which(layer, head)}", fontsize=9)
    return figure


def model_view_figure(raw: Array) -> Figure:
    """Every layer (down) and head (across) as lines from what looks to what is looked at."""
    from matplotlib.patches import Rectangle

    layers, heads, count = raw.shape[:3]
    figure = new_figure(max(3.0, 0.85 * heads + 0.4), max(1.5, 0.75 * layers + 0.4))
    axes = figure.add_subplot()  # one for all: each of its own would take seconds to lay out
    for layer, head in np.ndindex(layers, heads):
        corner = (head * STEP, layer * STEP)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=LINE, linewidth=0.6))
        _lines(axes, raw[layer, head], _colour(head, heads), 0.5, MOST_SMALL, corner=corner, down=1 / count)
    axes.set(xlim=(-0.05, heads * STEP), ylim=(layers * STEP, -0.05))
    axes.set_xticks([head * STEP + 0.5 for head in range(heads)], [f"head {head}" for head in range(heads)])
    axes.set_yticks([layer * STEP + 0.5 for layer in range(layers)], [f"layer {layer}" for layer in range(layers)])
    axes.tick_params(labelsize=6, length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _lines(
    axes: Axes,
    weights: Array,
    colour: tuple[float, float, float],
    width: float,
    most: int,
    share: float = 1.0,
    corner: tuple[float, float] = (0.0, -0.5),
    down: float = 1.0,
) -> None:
    """A line for each pair, the ``most`` strongest ones, as strong as the attention (times ``share``).

    Args:
        corner: where the first position's row begins; lines are 1 wide.
        down: height of a position.
    """
    from matplotlib.collections import LineCollection

    flat = weights.ravel()
    strongest = np.argsort(-flat, kind="stable")[:most]
    asks, answers = np.divmod(strongest[flat[strongest] >= LEAST], weights.shape[1])
    left, top = np.full(len(asks), corner[0]), corner[1] + 0.5 * down
    ends = np.stack([left, top + down * asks, left + 1, top + down * answers], axis=1).reshape(-1, 2, 2)
    strong = np.clip(weights[asks, answers] * share, 0, 1)
    colours: Any = np.concatenate([np.tile(colour, (len(asks), 1)), strong[:, None]], axis=1)
    axes.add_collection(LineCollection(list(ends), colors=colours, linewidths=width))


def _colour(number: int, count: int) -> tuple[float, float, float]:
    """The colours of the page's script."""
    import colorsys

    return colorsys.hls_to_rgb((number / count + 210 / 360) % 1, 0.52, 0.75)
