"""The experiments with pictures: their recipes are sound, and what they count is what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

import pictures_count
from mmbert.data.records import ImageRef, Record
from mmbert.training.recipe import load_recipe

RECIPES = sorted(path for path in pictures_count.RECIPES.glob("*.yaml") if not path.name.startswith("_"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_sound(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert recipe.name == f"pictures-{path.stem}" and recipe.description
    assert bool(recipe.model.config) == (path.stem == "start")  # the others go on with its network


def test_pre_training_differs_in_what_is_read_alone() -> None:
    a, b, c = (load_recipe(str(pictures_count.RECIPES / f"task-{task}.yaml")) for task in "abc")
    assert (a.steps, a.optimizer, a.seed) == (b.steps, b.optimizer, b.seed) == (c.steps, c.optimizer, c.seed)
    parts = [next(iter(recipe.components.values())) for recipe in (a, b, c)]
    assert [part.options["languages_per_example"] for part in parts] == [2, 1, 2]
    assert [set(part.objectives) for part in parts] == [{"mlm", "mvfr"}, {"mlm", "mvfr"}, {"mlm"}]


def picture(number: int, objects: str) -> Record:
    return Record(str(number), ImageRef(data=b"", key=f"{number}.webp"), extra={"objects": objects})


def test_a_caption_names_all_only_if_every_name_stands_there_as_a_word_of_its_own() -> None:
    record = picture(1, "cat, bell")
    assert pictures_count.names_all(record, "a cat at the top, a bell below", "en")
    assert not pictures_count.names_all(record, "a cat at the top", "en")
    assert not pictures_count.names_all(record, "a caterpillar, a bell", "en")
    assert pictures_count.names_all(record, "eine Katze, eine Glocke", "de")
    assert not pictures_count.names_all(record, "a cat, a bell", "de")
    assert pictures_count.fraction([True, False, True, True]) == 0.75


def test_shuffled_pictures_are_all_there_and_none_is_in_its_place() -> None:
    records = [picture(number, "cat") for number in range(5)]
    mixed = pictures_count.shuffled(records)
    assert [r.id for r in mixed] == [r.id for r in records]
    pairs = [(own.image, other.image) for own, other in zip(records, mixed, strict=True)]
    assert all(own is not other for own, other in pairs)
    assert {r.image.key for r in mixed if r.image} == {r.image.key for r in records if r.image}
