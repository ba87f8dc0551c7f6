"""Every language against every language: whose captions find whose, and what finds images.

In: a model and a gallery. Out: a matrix of recall whose rows ask and whose columns answer. Each is a language's
captions or the images; all are compared by their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbert.evaluation import ranks
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.ranks import CUTOFFS, Array

IMAGE = "image"
METRICS = (*(f"R@{k}" for k in CUTOFFS), "median_rank")


@dataclass(frozen=True)
class Matrix:
    """Recall of every kind of query in every kind of gallery.

    Args:
        names: L languages, and ``image`` where there are images.
        figures: metric -> [L, L], asked in rows, found in columns; NaN where no query has an answer.
    """

    names: list[str]
    figures: Mapping[str, Array]

    def means(self, metric: str = "R@1") -> dict[str, float]:
        """Plain means over the cells of each kind: ``text_to_text`` (of two languages), ``text_to_image``, …"""
        found = self.figures[metric]
        words = np.array([name != IMAGE for name in self.names])
        other: Array = ~np.eye(len(words), dtype=bool)
        kinds = {
            "text_to_text": np.outer(words, words) & other,
            "text_to_image": np.outer(words, ~words),
            "image_to_text": np.outer(~words, words),
        }
        chosen = {kind: found[where & ~np.isnan(found)] for kind, where in kinds.items()}
        return {kind: float(cells.mean()) for kind, cells in chosen.items() if len(cells)}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``names``, ``mean`` by metric and kind, and each metric as rows; None where there is no answer."""
        cells = {
            name: [[None if np.isnan(x) else float(x) for x in row] for row in m] for name, m in self.figures.items()
        }
        return {"names": self.names, "mean": {name: self.means(name) for name in self.figures}, **cells}


def retrieval_matrix(gallery: Gallery, text_vectors: Array, image_vectors: Array | None = None) -> Matrix:
    """The matrix of a gallery.

    A caption that looks for captions of its own language does not find itself: it looks for another of the same image.
    Ranks are those of ``mmbert.evaluation.ranks``: of the best right answer, behind wrong ones of the same score.

    Args:
        gallery: captions, images and which belong together.
        text_vectors: [distinct texts, D] unit rows (``gallery.distinct_texts``).
        image_vectors: [images, D] unit rows; None leaves images out.

    Raises:
        DataError: a vector is not a number.
    """
    _, place = gallery.distinct_texts
    sides = {name: (text_vectors[place[rows]], gallery.text_group[rows]) for name, rows in gallery.languages.items()}
    if image_vectors is not None and len(image_vectors):
        sides[IMAGE] = (image_vectors, gallery.image_group)
    names = list(sides)
    found = {metric: np.full((len(names), len(names)), np.nan) for metric in METRICS}
    for row, asked in enumerate(names):
        for column, answered in enumerate(names):
            if asked == answered == IMAGE:
                continue
            cell = ranks.figures(
                _among_others(*sides[asked]) if row == column else _ranks(sides[asked], sides[answered])
            )
            for metric, value in (cell or {}).items():
                found[metric][row, column] = value
    return Matrix(names, found)


Side = tuple[Array, Array]
"""Vectors [n, D] and groups [n]."""


def _ranks(asked: Side, answered: Side) -> Array:
    def block(start: int, stop: int) -> Array:
        scores: Array = asked[0][start:stop] @ answered[0].T
        return scores

    return ranks.ranks_by_block(block, asked[1], answered[1])


def _among_others(vectors: Array, groups: Array) -> Array:
    """Ranks of those that have another of their group, each left out of its own gallery."""
    _, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    asking = np.flatnonzero(counts[which] > 1)

    def block(start: int, stop: int) -> Array:
        rows = asking[start:stop]
        scores: Array = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf
        return scores

    return ranks.ranks_by_block(block, groups[asking], groups)


def as_text(matrix: Matrix, metric: str = "R@1") -> list[str]:
    """The matrix as lines of text: whole percents, ``**`` for 100, ``·`` where there is no answer.

    24 languages with two-letter codes and images fit into 80 columns.
    """
    names = ["img" if name == IMAGE else name for name in matrix.names]
    label = max(map(len, names))
    widths = [1 + max(2, len(name)) for name in names]
    lines = [" " * label + "".join(name.rjust(width) for name, width in zip(names, widths, strict=True))]
    for name, row in zip(names, matrix.figures[metric], strict=True):
        cells = (_cell(value, metric).rjust(width) for value, width in zip(row, widths, strict=True))
        lines.append(name.ljust(label) + "".join(cells))
    return lines


def _cell(value: float, metric: str) -> str:
    if np.isnan(value):
        return "·"
    if metric == "median_rank":
        return f"{value:.0f}" if value < 100 else "++"
    percent = round(100 * value)
    return "**" if percent == 100 else str(percent)


def as_cells(matrix: Matrix, metric: str = "R@1") -> list[list[float | None]]:
    """Fractions for the page's heat map; None where there is no answer."""
    return [[None if np.isnan(cell) else float(cell) for cell in row] for row in matrix.figures[metric]]


def kinds_in_words(means: Mapping[str, float]) -> Sequence[str]:
    """``text to text 83.1 %`` and so on."""
    return [f"{kind.replace('_', ' ')} {100 * value:.1f} %" for kind, value in means.items()]
