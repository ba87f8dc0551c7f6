"""Scenes that the tools compose: what they say about themselves is what can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from mmbert.data.sources import open_data
from mmbert.data.sources.starter import LANGUAGES
from scenes import CONCEPTS, GROUNDS, Composer, Placed, concept, concepts, place_of, relation
from scenes.compose import grid_for


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(size=128)


def draw(rng: np.random.Generator, many: int) -> list[str]:
    return [CONCEPTS[i] for i in rng.permutation(len(CONCEPTS))[:many]]


def test_concepts_have_different_names_in_every_language_and_were_seen_by_the_starter_model() -> None:
    assert len(concepts()) == len(set(CONCEPTS)) >= 60
    trained = open_data("starter:train")
    seen = {trained[i].group for i in range(len(trained))}
    for one in concepts():
        assert set(one.names) == set(LANGUAGES)
        assert one.codepoints in seen
    for language in ("en", "de", "fr", "cs"):
        assert len({one.names[language].lower() for one in concepts()}) == len(concepts())
        assert max(len(one.names[language].split()) for one in concepts()) <= 2


def test_english_articles_and_plurals() -> None:
    wanted = {
        "owl": "owls",
        "mouse": "mice",
        "church": "churches",
        "butterfly": "butterflies",
        "key": "keys",
        "bus": "buses",
    }
    assert {name: concept(name).plural for name in wanted} == wanted
    assert (concept("owl").article, concept("cat").article) == ("an", "a")


@pytest.mark.parametrize("many", [2, 3, 5, 10])
def test_boxes_lie_inside_the_canvas_and_never_overlap(composer: Composer, many: int) -> None:
    rng = np.random.default_rng(many)
    for _ in range(40):
        scene = composer.compose(rng, draw(rng, many))
        assert scene.image.size == (128, 128) and scene.image.mode == "RGB"
        assert len(scene.objects) == many
        taken = np.zeros((128, 128), dtype=int)
        for placed in scene.objects:
            x1, y1, x2, y2 = placed.box
            assert 0 < x1 < x2 < 128 and 0 < y1 < y2 < 128
            taken[y1:y2, x1:x2] += 1
        assert taken.max() == 1


def test_a_box_holds_all_of_its_drawing_and_nothing_is_drawn_elsewhere(composer: Composer) -> None:
    rng = np.random.default_rng(3)
    for ground in GROUNDS:
        scene = composer.compose(rng, draw(rng, 4), ground=ground)
        drawn = (np.asarray(scene.image) != np.array(ground.rgb)).any(axis=2)
        for placed in scene.objects:
            x1, y1, x2, y2 = placed.box
            inside = drawn[y1:y2, x1:x2]
            assert inside.mean() > 0.15  # something is seen,
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            assert np.ptp(rows) >= 0.8 * (y2 - y1 - 1) and np.ptp(columns) >= 0.8 * (x2 - x1 - 1)  # and fills its box
            drawn[y1:y2, x1:x2] = False
        assert not drawn.any()


def test_the_seed_decides_everything(composer: Composer) -> None:
    def made(seed: int) -> tuple[bytes, dict[str, object]]:
        scene = composer.compose(np.random.default_rng(seed), ["cat", "dog", "dog"])
        return scene.image.tobytes(), scene.facts()

    assert made(1) == made(1)
    assert made(1)[0] != made(2)[0]


def test_what_is_asked_for_is_there(composer: Composer) -> None:
    ground = GROUNDS[3]
    scene = composer.compose(
        np.random.default_rng(1), ["cat", "dog", "dog"], ground=ground, style="noto", grid=(2, 2), cells=[3, 0, 1]
    )
    assert (scene.count("dog"), scene.count("cat"), scene.count("cow")) == (2, 1, 0)
    assert scene.image.getpixel((0, 0)) == ground.rgb
    assert [(o.cell, o.style) for o in scene.objects] == [(3, "noto"), (0, "noto"), (1, "noto")]
    assert scene.objects[0].centre[0] > 64 and scene.objects[0].centre[1] > 64
    assert [box.name for box in scene.region_boxes()] == ["", "", ""]
    assert [box.name for box in scene.region_boxes(named=True)] == ["cat", "dog", "dog"]


def test_relations_are_told_only_where_they_are_clear(composer: Composer) -> None:
    assert relation((0, 0, 10, 10), (20, 2, 30, 12)) == "left"
    assert relation((20, 2, 30, 12), (0, 0, 10, 10)) == "right"
    assert relation((2, 0, 12, 10), (0, 20, 10, 30)) == "above"
    assert relation((0, 20, 10, 30), (2, 0, 12, 10)) == "below"
    assert relation((0, 0, 10, 10), (20, 20, 30, 30)) is None  # as far to the left as above
    assert relation((0, 0, 10, 10), (8, 0, 18, 10)) is None  # overlapping
    rng = np.random.default_rng(5)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above", None: None}
    for _ in range(50):
        scene = composer.compose(rng, draw(rng, 2))
        assert scene.relation(1, 0) == opposite[scene.relation(0, 1)]


def test_places_are_thirds_of_the_canvas() -> None:
    def at(x: int, y: int) -> tuple[str, str]:
        return place_of(Placed(concept("cat"), "noto", (x - 5, y - 5, x + 5, y + 5), 0), 120)

    assert (at(10, 10), at(60, 60), at(110, 60)) == (("top", "left"), ("middle", "middle"), ("middle", "right"))


def test_cells_that_cannot_be_are_refused(composer: Composer) -> None:
    rng = np.random.default_rng(0)
    for grid, cells in (((1, 1), None), ((2, 2), [0, 0]), ((2, 2), [0, 4])):
        with pytest.raises(ValueError, match="cells"):
            composer.compose(rng, ["cat", "dog"], grid=grid, cells=cells)
    assert all(rows * columns >= n for n in range(1, 13) for rows, columns in [grid_for(n)])
