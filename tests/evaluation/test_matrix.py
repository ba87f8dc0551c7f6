"""Languages against languages: the matrix agrees with one loop over every query, and reads well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import ColourModel, save_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page, outside_references

from mmbert.cli import _matrix as command
from mmbert.cli.main import run
from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.matrix import IMAGE, Matrix, as_text, retrieval_matrix


def by_hand(query: Any, right: list[Any], wrong: list[Any]) -> int | None:
    """Rank of the best right one: one more than the wrong ones that are as near; None where none is right."""
    if not right:
        return None
    best = max(float(query @ other) for other in right)
    return 1 + sum(float(query @ other) >= best for other in wrong)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_every_cell_is_what_a_loop_over_its_queries_gives(seed: int, groups: int, pictured: bool) -> None:
    rng = np.random.default_rng(seed)
    records = []
    for number in range(groups):
        counts = {code: int(rng.integers(0, 3)) for code in ("de", "en", "fr")}
        captions = {code: tuple(f"{code} {number} {i}" for i in range(n)) for code, n in counts.items() if n}
        image = ImageRef(data=b"x", key=str(number)) if pictured and rng.random() < 0.8 else None
        records.append(Record(id=str(number), image=image, captions=captions or {"en": (f"en {number}",)}))
    gallery = build_gallery(records, texts_alone=True)
    distinct, place = gallery.distinct_texts
    # Few whole numbers, so that scores are equal now and then.
    texts = rng.integers(-1, 2, (len(distinct), 2)).astype(np.float32)
    images = rng.integers(-1, 2, (len(gallery.images), 2)).astype(np.float32)
    found = retrieval_matrix(gallery, texts, images)
    items = {
        code: [(texts[place[i]], gallery.text_group[i], i) for i in range(rows.start, rows.stop)]
        for code, rows in gallery.languages.items()
    }
    if gallery.images:
        items[IMAGE] = [(images[i], gallery.image_group[i], -1 - i) for i in range(len(images))]
    assert found.names == list(items)
    for row, asked in enumerate(items):
        for column, answered in enumerate(items):
            ranks = []
            for vector, group, number in items[asked] if (asked, answered) != (IMAGE, IMAGE) else []:
                others = [(v, g) for v, g, n in items[answered] if n != number]
                rank = by_hand(vector, [v for v, g in others if g == group], [v for v, g in others if g != group])
                ranks += [rank] if rank is not None else []
            cell = {metric: values[row, column] for metric, values in found.figures.items()}
            if not ranks:
                assert all(np.isnan(value) for value in cell.values())
                continue
            for k in (1, 5, 10):
                assert cell[f"R@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
            assert cell["median_rank"] == pytest.approx(np.median(ranks))


def test_vectors_that_are_not_numbers_are_an_error() -> None:
    gallery = build_gallery([Record(id="a", captions={"en": ("x",), "de": ("y",)})], texts_alone=True)
    with pytest.raises(DataError, match="not numbers"):
        retrieval_matrix(gallery, np.full((2, 3), np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="no record has a caption"):
        build_gallery([], texts_alone=True)


def test_twenty_four_languages_fit_a_terminal() -> None:
    names = [a + b for a in "abcd" for b in "stuvwx"]
    values = np.full((25, 25), 0.984)
    values[3, 3], values[0, 0] = np.nan, 1.0
    lines = as_text(Matrix([*names, IMAGE], {"R@1": values}))
    assert len(lines) == 26
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [*names, "img"]
    assert lines[1].split() == [names[0], "**", *["98"] * 24]
    assert lines[4].split()[4] == "·"


def test_means_are_over_the_cells_of_each_kind() -> None:
    values = np.array([[0.1, 0.6, 0.5], [0.8, np.nan, 0.7], [0.2, 0.4, np.nan]])
    means = Matrix(["de", "en", IMAGE], {"R@1": values}).means()
    assert means == pytest.approx({"text_to_text": 0.7, "text_to_image": 0.6, "image_to_text": 0.3})


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_model", lambda name, device=None, **_: ColourModel())
    save_folder(tmp_path / "photos")
    return tmp_path


def test_the_command_prints_tables_json_and_a_page(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "matrix", "--data", "photos", "--lang", "de,fr", "--html", "matrix.html"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "R@1, photos: 24 captions, 12 images"
    assert [line.split()[0] for line in lines[1:4]] == ["de", "de", "fr"]
    assert lines[-1].startswith("mean: text to text ")
    assert said.err.endswith("page: matrix.html\n")
    page = Path("matrix.html").read_text("utf-8")
    assert outside_references(page) == []
    assert [text for _, text in Page(page).all("h2")] == ["R@1", "R@5", "R@10"]
    assert run(["evaluate", "matrix", "--data", "photos", "--no-images", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["names"] == ["ar", "de", "en", "fr"]
    assert report["R@1"][0][0] is None
    assert 0 <= report["R@1"][0][1] <= report["R@10"][0][1] <= 1
    assert report["R@10"][1][2] > 0.5
    assert set(report["mean"]["R@1"]) == {"text_to_text"}
    assert run(["evaluate", "matrix", "--data", "photos", "--metric", "R@2"]) == 2
    assert "unknown metric 'R@2'" in capsys.readouterr().err


def test_parallel_text_needs_no_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text_en": f"{c} ball", "text_de": f"{d} ball"} for c, d in (("red", "rot"), ("blue", "blau"))]
    (photos / "pairs").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (photos / "pairs" / "metadata.jsonl").write_text(lines, "utf-8")
    assert run(["evaluate", "matrix", "--data", "pairs", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["names"] == ["de", "en"]
    assert report["R@1"] == [[None, 1.0], [1.0, None]]
