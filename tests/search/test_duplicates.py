"""Near-duplicates: which images are put together, and which one comes first."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from colours import ColourModel, picture, save_picture

from mmbert.errors import UsageError
from mmbert.search import duplicates
from mmbert.search.duplicates import find_duplicates
from mmbert.search.index import SearchIndex, build_index


@pytest.fixture
def index(tmp_path: Path, request: pytest.FixtureRequest) -> SearchIndex:
    folder = tmp_path / "photos"
    save_picture(folder / "red.png", "red")
    (folder / "copy.png").write_bytes((folder / "red.png").read_bytes())
    save_picture(folder / "large red.png", "red", size=(90, 60))
    save_picture(folder / "green.png", "green")
    picture("green").save(folder / "green.jpg", quality=90)
    save_picture(folder / "blue.png", "blue")
    build_index(ColourModel(), folder, tmp_path / "index", kind=getattr(request, "param", None))
    return SearchIndex.open(tmp_path / "index", ColourModel())


@pytest.mark.parametrize("block", [2, 2048])
def test_groups_and_their_first_images(index: SearchIndex, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    check(index)


@pytest.mark.parametrize("index", ["flat"], indirect=True)
def test_the_nearest_of_a_vector_index_give_the_same_groups(index: SearchIndex) -> None:
    assert index.about.neighbours is not None
    check(index)


def check(index: SearchIndex) -> None:
    reds, greens = find_duplicates(index, threshold=0.99)
    assert [Path(one.path).name for one in reds] == ["large red.png", "copy.png", "red.png"]
    assert [one.same_file for one in reds] == [True, False, False]
    assert (reds[0].width, reds[0].height, reds[0].score) == (90, 60, pytest.approx(1.0))
    assert {Path(one.path).name for one in greens} == {"green.png", "green.jpg"}


def test_pairs_are_those_of_all_products() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    duplicates_found = {
        (i, j) for left, right in duplicates._pairs(vectors, 0.9) for i, j in zip(left, right, strict=True)
    }
    assert duplicates_found == {(i, j) for i in range(50) for j in range(i + 1, 50) if vectors[i] @ vectors[j] >= 0.9}


@pytest.mark.parametrize("threshold", [0.0, 1.5, -1.0])
def test_a_threshold_that_is_no_cosine_is_refused(index: SearchIndex, threshold: float) -> None:
    with pytest.raises(UsageError, match="no cosine is"):
        find_duplicates(index, threshold=threshold)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_is_no_copy_of_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    save_picture(folder / "m.png", "red")
    for name in ("a link.png", "z link.png"):
        (folder / name).symlink_to(folder / "m.png")
    build_index(ColourModel(), folder, tmp_path / "index")
    assert find_duplicates(SearchIndex.open(tmp_path / "index", ColourModel())) == []
    (folder / "b copy.png").write_bytes((folder / "m.png").read_bytes())
    build_index(ColourModel(), folder, tmp_path / "index")
    (group,) = find_duplicates(SearchIndex.open(tmp_path / "index", ColourModel()))
    assert [Path(one.path).name for one in group] == ["b copy.png", "m.png"]
