"""Scores as probabilities: the curve is the right one, and an index learns it from its own captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from colours import ColourModel, save_picture, write_metadata

from mmbert.search.calibration import calibrate, platt
from mmbert.search.index import SearchIndex, build_index


def drawn(queries: int, slope: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-0.2, 0.9, (queries, 20))
    return scores, rng.random(scores.shape) < 1 / (1 + np.exp(-(slope * scores + offset)))


def test_platt_finds_the_curve_that_answers_were_drawn_from() -> None:
    scores, right = drawn(2000, 9.0, -5.0)
    slope, offset = platt(scores.ravel(), right.ravel())
    assert slope == pytest.approx(9.0, rel=0.05)
    assert offset == pytest.approx(-5.0, rel=0.05)


def test_platt_is_where_the_gradient_vanishes() -> None:
    scores, right = drawn(30, 4.0, -2.0)
    slope, offset = platt(scores.ravel(), right.ravel())
    positive, negative = right.sum(), (~right).sum()
    target = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
    error = 1 / (1 + np.exp(-(slope * scores + offset))) - target
    assert abs(error.sum()) < 1e-3
    assert abs((error * scores).sum()) < 1e-3


def test_a_calibration_beats_saying_the_same_of_all() -> None:
    found = calibrate(*drawn(200, 9.0, -5.0))
    assert found is not None
    assert found.brier < 0.8 * found.base
    assert found.probability(0.9) > 0.9 > 0.1 > found.probability(0.0)


@pytest.mark.parametrize("case", ["few", "all right", "none right", "upside down"])
def test_nothing_is_learned_from_nothing(case: str) -> None:
    scores, right = drawn(200, -9.0 if case == "upside down" else 9.0, 0.0)
    if case == "few":
        scores, right = scores[:49], right[:49]
    elif case != "upside down":
        right = np.full_like(right, case == "all right")
    assert calibrate(scores, right) is None


def test_an_index_with_captions_says_how_sure_it_is(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        colour = ["red", "green", "blue", "yellow", "white"][number % 5]
        save_picture(tmp_path / "photos" / f"{number}.png", colour)
        rows.append({"file_name": f"{number}.png", "caption_en": colour})
    write_metadata(tmp_path / "photos", rows)
    model = ColourModel()
    build_index(model, tmp_path / "photos", tmp_path / "index")
    hits = SearchIndex.open(tmp_path / "index", model).search("red", k=60)
    assert [hit.captions["en"] == ("red",) for hit in hits] == [True] * 12 + [False] * 48
    assert hits[0].probability is not None
    assert hits[0].probability > 0.9
    assert hits[59].probability < 0.1
    about = json.loads((tmp_path / "index/mmbert-index.json").read_text())
    assert about["calibration"]["queries"] == 60
    image_hits = SearchIndex.open(tmp_path / "index", model).search(tmp_path / "photos/0.png", k=1)
    assert image_hits[0].probability is None  # learned from texts
