"""The report of a training run: its log, and its model's answers on the evaluation data, as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert import __version__, html
from mmbert.errors import DataError, UsageError
from mmbert.evaluation.embedding_map import EmbeddingMap, embedding_map
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.matrix import retrieval_matrix
from mmbert.evaluation.ranks import Array, Report
from mmbert.evaluation.report import COLUMNS, Facts, as_described, as_shown
from mmbert.evaluation.retrieval import Retrieval

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

LOG = "log.jsonl"
WIDTH, HEIGHT = 320.0, 110.0
"""Of a curve's drawing area."""
NOT_CURVES = {"step", "time", "epoch"}


@dataclass(frozen=True)
class Curve:
    """One logged figure over the steps.

    Args:
        name: as in the log.
        steps, values: the points.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def points(self) -> str:
        """The points as an SVG polyline in ``WIDTH`` x ``HEIGHT``."""
        left, right, low, high = self.steps[0], self.steps[-1], min(self.values), max(self.values)
        across = WIDTH / max(1, right - left)
        up = HEIGHT / (high - low) if high > low else 0.0
        return " ".join(
            f"{(step - left) * across:.1f},{HEIGHT - (value - low) * up if up else HEIGHT / 2:.1f}"
            for step, value in zip(self.steps, self.values, strict=True)
        )


def read_curves(path: Path) -> list[Curve]:
    """The figures of a run's log, in order of first appearance. Where a step was repeated, the last counts.

    Raises:
        UsageError: there is no such log.
        DataError: a line is not a JSON object with a step.
    """
    if not path.is_file():
        raise UsageError("no training run: log.jsonl is missing", where=str(path.parent), hint="give a run's folder")
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            logged = json.loads(line)
            step = int(logged["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"not a line of a training log: {error}", where=f"{path}:{number}") from error
        for name, value in logged.items():
            if name not in NOT_CURVES and isinstance(value, int | float) and np.isfinite(value):
                found.setdefault(name, {})[step] = float(value)
    curves = [(name, sorted(points.items())) for name, points in found.items() if len(points) > 1]
    return [
        Curve(name, tuple(step for step, _ in points), tuple(value for _, value in points)) for name, points in curves
    ]


def language_matrix(model: Any, gallery: Gallery) -> tuple[list[str], Array]:
    """How often a caption's nearest caption in another language says the same (R@1).

    Args:
        gallery: its captions are compared by their vectors, without the images.

    Returns:
        L languages, and [L, L] fractions, asked in rows, found in columns (see ``mmbert.evaluation.matrix``).
    """
    distinct, _ = gallery.distinct_texts
    found = retrieval_matrix(gallery, model.encode_text(distinct))
    return found.names, found.figures["R@1"]


@dataclass(frozen=True)
class RunReport:
    """What is known of a run.

    Args:
        curves: of the log.
        recall: figures by language, as ``recall_report`` gives them.
        languages, matrix: L languages and [L][L] fractions of captions that find one of the other language.
        answers, described: captions with images that they find, and images with captions (``report.as_shown``).
        map: where images lie.
    """

    curves: Sequence[Curve]
    recall: Report | None = None
    languages: Sequence[str] = ()
    matrix: Sequence[Sequence[float | None]] = ()
    answers: Sequence[Mapping[str, Any]] = ()
    described: Sequence[Mapping[str, Any]] = ()
    map: EmbeddingMap | None = None


def run_report(
    curves: Sequence[Curve],
    retrieval: Retrieval,
    model: MMBert,
    *,
    per_language: int = 1,
    method: str = "pca",
    captions: bool = False,
    seed: int = 0,
) -> RunReport:
    """The curves of a run with what its model answers.

    Args:
        retrieval: a finished evaluation of the model.
        per_language: captions of each language shown with what they find, and images likewise.
        method, captions: of the map, as for ``embedding_map``.
    """
    gallery = retrieval.gallery
    languages, matrix = language_matrix(model, gallery)
    return RunReport(
        curves,
        retrieval.report(),
        languages,
        [[None if np.isnan(cell) else float(cell) for cell in row] for row in matrix],
        as_shown(gallery, retrieval.sample(per_language)),
        as_described(gallery, retrieval.sample_images(per_language)),
        embedding_map(model, gallery, method=method, captions=captions, seed=seed),
    )


def run_page(report: RunReport, *, title: str, facts: Facts = (), remark: str = "") -> str:
    """The page.

    Args:
        remark: said below the map.
    """
    return html.render(
        "run.html",
        title=title,
        facts=list(facts),
        version=__version__,
        columns=COLUMNS,
        width=WIDTH,
        height=HEIGHT,
        before=None,
        after=report.recall,
        at_random=True,
        remark=remark,
        report=report,
        answers=report.answers,
        described=report.described,
    )
