"""Maps of embeddings: what is alike lies together, the same every time, and what is missing is said."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from colours import ColourModel

from mmbert.data.records import ImageRef, Record
from mmbert.errors import UsageError
from mmbert.evaluation.embedding_map import embedding_map, lay_out, usable_method
from mmbert.evaluation.gallery import build_gallery

INSTALLED = [
    pytest.param("tsne", marks=pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="no scikit-learn")),
    pytest.param("umap", marks=pytest.mark.skipif(not importlib.util.find_spec("umap"), reason="no umap-learn")),
]


def clusters(count: int = 5, size: int = 15, dimensions: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around ``count`` centres in more dimensions than a plane can show, and which is whose."""
    rng = np.random.default_rng(0)
    belongs = np.repeat(np.arange(count), size)
    vectors = np.eye(dimensions)[belongs] + 0.1 * rng.standard_normal((len(belongs), dimensions))
    order = rng.permutation(len(belongs))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[order].astype(np.float32), belongs[order]


def test_principal_components_are_the_directions_of_greatest_spread() -> None:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    spread = np.array([9.0, 4.0, 0.1, 0.1, 0.1, 0.1])
    points = rng.standard_normal((200, 6)) * spread
    plane = lay_out(points @ directions.T)
    for axis in (0, 1):
        assert abs(np.corrcoef(plane[:, axis], points[:, axis])[0, 1]) > 0.99
    assert plane.min(axis=0) == pytest.approx([0, 0])
    assert plane.max(axis=0) == pytest.approx([1, 1])
    assert lay_out(np.ones((3, 1))).shape == (3, 2)


@pytest.mark.parametrize("method", INSTALLED)
def test_neighbours_stay_neighbours_and_the_seed_decides(method: str) -> None:
    vectors, belongs = clusters()
    plane = lay_out(vectors, method, seed=1)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2) + 9 * np.eye(len(plane))
    assert (belongs[distances.argmin(axis=1)] == belongs).mean() > 0.95
    assert plane.min(axis=0) == pytest.approx([0, 0])
    assert plane.max(axis=0) == pytest.approx([1, 1])
    np.testing.assert_array_equal(lay_out(vectors, method, seed=1), plane)


@pytest.mark.parametrize("method", INSTALLED)
@pytest.mark.parametrize("count", [3, 4, 7])
def test_a_few_points_have_places_too(method: str, count: int) -> None:
    plane = lay_out(clusters()[0][:count], method)
    assert plane.shape == (count, 2)
    assert np.isfinite(plane).all()


def test_what_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown map 'tsme'") as caught:
        usable_method("tsme")
    assert caught.value.hint == "did you mean 'tsne'?"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert usable_method(None) == usable_method("pca") == "pca"
    for method, extra in (("tsne", "report"), ("umap", "umap")):
        with pytest.raises(UsageError, match="is not installed") as caught:
            usable_method(method)
        assert f"mm-bert[{extra}]" in str(caught.value.hint)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert usable_method(None) == "tsne"
    assert usable_method("umap") == "umap"


def test_captions_lie_where_their_images_do(model: ColourModel, records: list[Record]) -> None:
    gallery = build_gallery(records)
    alone = embedding_map(model, gallery)
    assert alone is not None
    assert len(alone.images) == 6
    assert not alone.captions
    both = embedding_map(model, gallery, captions=True, seed=3)
    assert both is not None
    assert len(both.captions) == 6 * 4
    assert list(both.languages) == ["ar", "de", "en", "fr"]
    assert len(set(both.languages.values())) == 4
    place = {one.name: (one.x, one.y) for one in both.images}
    english = {one.name: (one.x, one.y) for one in both.captions if one.language == "en"}
    assert set(place) == set(english)
    for name, spot in place.items():  # this model gives a colour and its name one vector
        assert english[name] == pytest.approx(spot, abs=0.02)


def test_images_that_are_gone_are_left_out(model: ColourModel, records: list[Record]) -> None:
    lost = ImageRef(path="/nowhere/at/all.png", key="lost")
    gallery = build_gallery([*records[:3], Record(id="lost", image=lost, captions={"en": ("lost",)})])
    found = embedding_map(model, gallery)
    assert found is not None and len(found.images) == 3
    gone = build_gallery([*records[:2], Record(id="lost", image=lost, captions={"en": ("lost",)})])
    assert embedding_map(model, gone) is None
