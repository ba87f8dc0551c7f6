"""The report of a training run: its log, and its model's answers on the evaluation data, as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbert import __version__, html
from mmbert.errors import DataError, ImageError, UsageError
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.matrix import retrieval_matrix
from mmbert.evaluation.ranks import Array
from mmbert.evaluation.report import COLUMNS, as_shown
from mmbert.evaluation.retrieval import Retrieval
from mmbert.vision.images import load_image

LOG = "log.jsonl"
WIDTH, HEIGHT = 320.0, 110.0
"""Of a curve's drawing area."""
NOT_CURVES = {"step", "time", "epoch"}
MAP_IMAGES = 250


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


def principal_plane(vectors: Array) -> Array:
    """[n, D] vectors to [n, 2] in 0..1: their two directions of greatest spread (principal components)."""
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    low, high = plane.min(axis=0), plane.max(axis=0)
    return (plane - low) / np.where(high > low, high - low, 1)


def run_page(
    curves: Sequence[Curve],
    retrieval: Retrieval | None = None,
    model: Any = None,
    *,
    title: str,
    facts: Iterable[tuple[str, Any]] = (),
    per_language: int = 1,
    seed: int = 0,
) -> str:
    """The page.

    Args:
        curves: of the log.
        retrieval, model: a finished evaluation and its model; without them the page has the curves alone.
        per_language: captions of each language shown with what they find.
    """
    more: dict[str, Any] = {"after": None, "answers": [], "languages": [], "matrix": [], "map": [], "described": []}
    if retrieval is not None:
        gallery = retrieval.gallery
        languages, matrix = language_matrix(model, gallery)
        more = {
            "after": retrieval.report(),
            "answers": as_shown(gallery, retrieval.sample(per_language)),
            "languages": languages,
            "matrix": [[None if np.isnan(cell) else float(cell) for cell in row] for row in matrix],
            "map": _map(model, gallery, seed),
            "described": _described(retrieval, seed),
        }
    return html.render(
        "run.html",
        title=title,
        facts=list(facts),
        version=__version__,
        columns=COLUMNS,
        before=None,
        at_random=True,
        curves=curves,
        width=WIDTH,
        height=HEIGHT,
        **more,
    )


def _map(model: Any, gallery: Gallery, seed: int) -> list[dict[str, Any]]:
    """Some images where their vectors lie on the principal plane."""
    chosen = np.random.default_rng(seed).permutation(len(gallery.images))[:MAP_IMAGES]
    opened = []
    for i in chosen.tolist():
        try:
            opened.append((i, load_image(gallery.images[i])))
        except ImageError:  # gone since it was evaluated
            continue
    if len(opened) < 3:
        return []
    places = principal_plane(model.encode_images([image for _, image in opened]))
    return [
        {"x": f"{94 * x:.2f}", "y": f"{94 * y:.2f}", "image": html.thumbnail(image, 48), "name": _gloss(gallery, i)}
        for (i, image), (x, y) in zip(opened, places.tolist(), strict=True)
    ]


def _gloss(gallery: Gallery, image: int) -> str:
    return gallery.gloss.get(int(gallery.image_group[image]), "")


def _described(retrieval: Retrieval, seed: int, count: int = 5) -> list[dict[str, Any]]:
    """The other direction: some images with the best caption of each language."""
    gallery = retrieval.gallery
    shown: list[dict[str, Any]] = []
    for image in np.random.default_rng(seed + 1).permutation(len(gallery.images)).tolist():
        if len(shown) == count:
            break
        try:
            opened = load_image(gallery.images[image])
        except ImageError:
            continue
        rows = [_best_text(retrieval, image, language) for language in gallery.languages]
        shown.append({"image": html.thumbnail(opened), "name": _gloss(gallery, image), "rows": rows})
    return shown


def _best_text(retrieval: Retrieval, image: int, language: str) -> Mapping[str, Any]:
    gallery = retrieval.gallery
    row = retrieval.best_text(image, language)
    group = int(gallery.text_group[row])
    gloss = "" if language == "en" else gallery.gloss.get(group, "")
    right = group == int(gallery.image_group[image])
    return {"language": language, "text": gallery.texts[row], "gloss": gloss, "right": right}
