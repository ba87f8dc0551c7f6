"""Heads that tasks ask for, made of the training records: what the recipe says of them wins."""

from __future__ import annotations

from typing import Any

import pytest

from mmbert.data.records import Record
from mmbert.errors import ConfigError
from mmbert.training.heads import with_task_heads
from mmbert.training.recipe import Recipe, check_recipe


class Rows(list[Record]):
    name, languages = "rows", ("en", "de", "fr")


def rows(language: str, *translations: str) -> Rows:
    found = Rows()
    for number, text in enumerate(translations):
        annotation = {"word": "hat", "language": language, "translations": [text]}
        found.append(Record(str(number), captions={"en": ("a hat",)}, annotation=annotation))
    return found


def recipe_of(heads: dict[str, Any] | None = None, **options: Any) -> Recipe:
    part = {"task": "lexical_translation", "objectives": {"lexical": {}}, "options": options}
    content = {
        "name": "words", "steps": 1, "model": {"config": {"heads": heads} if heads else {}},
        "components": {"german": part, "french": part},
    }  # fmt: skip
    return check_recipe(content, where="test")


SOURCES: dict[str, Any] = {"german": rows("de", "hut", "mütze", "hut"), "french": rows("fr", "chapeau")}


def test_the_components_of_a_task_share_its_head() -> None:
    recipe = recipe_of()
    head = with_task_heads(recipe.model, recipe, SOURCES).config["heads"]["lexical"]
    assert head["labels"] == ["chapeau", "hut", "mütze"]
    assert head["outputs"] == 3
    assert head["lexicon"]["de"]["hat"] == {"hut": {"hut": 2}, "mütze": {"mütze": 1}}
    assert recipe.model.config == {}  # the recipe itself stays as it is written


def test_what_the_recipe_says_of_a_head_wins_and_other_heads_stay() -> None:
    recipe = recipe_of(heads={"lexical": {"kind": "two_layer", "hidden_size": 8}, "answer": {"kind": "linear"}})
    heads = with_task_heads(recipe.model, recipe, SOURCES).config["heads"]
    assert (heads["lexical"]["kind"], heads["lexical"]["outputs"]) == ("two_layer", 3)
    assert heads["answer"] == {"kind": "linear"}


def test_a_task_without_heads_leaves_the_model_alone() -> None:
    content = {"name": "r", "steps": 1, "components": {"c": {"task": "retrieval", "objectives": {"itc": {}}}}}
    recipe = check_recipe(content, where="test")
    assert with_task_heads(recipe.model, recipe, {"c": Rows()}) is recipe.model


def test_wrong_options_name_the_component() -> None:
    recipe = recipe_of(neighbors=2)
    with pytest.raises(ConfigError, match=r"components\.german\.options.*did you mean 'neighbours'"):
        with_task_heads(recipe.model, recipe, SOURCES)
