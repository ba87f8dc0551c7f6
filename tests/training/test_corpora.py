"""Where a recipe's data lie: data.root says it once, for components and evaluation too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora import records, write_image, write_lines, write_multi30k

from mmbert.data.prepare import prepare
from mmbert.data.sources import open_data, placed
from mmbert.data.sources.joined import JoinedSource
from mmbert.errors import ConfigError
from mmbert.training.build import _trained_on, evaluation_records, open_sources
from mmbert.training.corpora import component_data, evaluation_data, run_data
from mmbert.training.recipe import Recipe, check_recipe, load_recipe

MULTI30K = {"source": "multi30k", "task": 1, "languages": ["en", "de"], "images": "{root}/images"}


def recipe_of(**changes: Any) -> Recipe:
    main = {"task": "retrieval", "objectives": {"itc": {}}}
    content = {"name": "x", "steps": 1, "components": {"main": main, "other": main}} | changes
    return check_recipe(content, "x")


def with_texts(**changes: Any) -> Recipe:
    texts = {"task": "pretraining", "objectives": {"mlm": {}}, "data": {"source": "text", "path": "{root}/wiki.doc"}}
    return recipe_of(components={"texts": texts}, **changes)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_multi30k(tmp_path / "corpus")


def test_a_root_stands_at_the_start_of_paths_only() -> None:
    value = {"a": ["{root}/x", "no {root}"], "b": "{root}", "c": 3, "d": "{rooted}"}
    assert placed(value, "/r") == {"a": ["/r/x", "no {root}"], "b": "/r", "c": 3, "d": "{rooted}"}


def test_a_root_alone_is_a_folder_of_the_users(tmp_path: Path) -> None:
    assert run_data(recipe_of(data={"root": "photos"})) == {"source": "folder", "root": "photos"}
    assert run_data(recipe_of(data={"root": "photos", "split": "train"}))["split"] == "train"  # type: ignore[index,call-overload]
    assert run_data(recipe_of(data="photos")) == "photos"
    assert run_data(recipe_of()) is None


def test_the_root_completes_the_corpus_that_a_recipe_names(corpus: Path) -> None:
    recipe = load_recipe("mm-bert-mt", [f"data.root={corpus}", 'data.images="{root}/images"'])
    found = records(open_sources(recipe)["pairs"])
    assert [record.captions for record in found][1] == {"en": ("en a 1",), "de": ("de a 1",)}
    assert {Path(str(record.image.path)).parent for record in found if record.image} == {corpus / "images"}


def test_other_data_lie_below_the_root() -> None:
    text = {"source": "text", "path": "/r/wiki.doc"}
    recipe = with_texts(data={"root": "/r"})
    assert component_data(recipe, "texts", recipe.components["texts"]) == text
    recipe = with_texts(data=MULTI30K | {"root": "/r"})
    assert component_data(recipe, "texts", recipe.components["texts"]) == text


def test_data_without_a_source_are_the_runs_with_other_options(corpus: Path) -> None:
    recipe = recipe_of(data=MULTI30K | {"root": str(corpus)}, evaluation={"data": {"split": "validation"}})
    assert evaluation_data(recipe) == MULTI30K | {
        "root": str(corpus),
        "split": "validation",
        "images": f"{corpus}/images",
    }
    assert evaluation_records(recipe)[0].captions["en"] == ("en b 0",)
    assert {record.split for record in records(open_sources(recipe)["main"])} == {"train"}


@pytest.mark.parametrize(
    ("recipe", "where", "hint"),
    [
        (recipe_of(data=MULTI30K), "data", "data.root=FOLDER"),
        (recipe_of(data={"source": "wmt14"}), "data", "mmbert data prepare wmt14"),
        (with_texts(), "components.texts.data", "data.root=FOLDER"),
        (with_texts(data="photos", evaluation={"data": "starter"}), "components.texts.data", "data.root=FOLDER"),
    ],
)
def test_a_missing_root_is_named(recipe: Recipe, where: str, hint: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if recipe.data == "photos":
        recipe.data = {"source": "starter"}
    with pytest.raises(ConfigError) as caught:
        open_sources(recipe)
    assert caught.value.where == where
    assert hint in str(caught.value.hint)


def test_a_store_of_the_corpus_may_lie_there(corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = {"languages": "en,de", "images": corpus / "images"}
    prepare("multi30k", corpus, store, options, allow_incomplete=True)
    recipe = recipe_of(data=MULTI30K | {"root": str(store)}, evaluation={"data": {"split": "validation"}})
    assert run_data(recipe) == {"source": "prepared", "root": str(store), "split": "train", "languages": ["en", "de"]}
    assert [r.captions for r in records(open_sources(recipe)["main"])] == [
        r.captions for r in records(open_data(MULTI30K | {"root": str(corpus)}))
    ]
    assert {r.split for r in evaluation_records(recipe)} == {"validation"}
    with pytest.raises(ConfigError, match="task=1, the recipe wants 2"):
        run_data(recipe_of(data=MULTI30K | {"root": str(store), "task": 2}))
    with pytest.raises(ConfigError, match="a store of multi30k, where the recipe is about wmt14"):
        run_data(recipe_of(data={"source": "wmt14", "root": str(store)}))


def test_of_joined_corpora_each_says_by_itself_what_is_trained_on(tmp_path: Path) -> None:
    """One that knows of no splits is trained on, beside one that has them."""
    write_lines(tmp_path / "plain.txt", ["one", "two"])
    write_lines(tmp_path / "held.txt", ["three"])
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = ["file_name,caption_en,split"]
    for name, split in (("a.png", "train"), ("b.png", "validation")):
        write_image(folder / name)
        lines.append(f"{name},{split},{split}")
    write_lines(folder / "metadata.csv", lines)

    def captions(*parts: object) -> list[str]:
        recipe = recipe_of(data={"source": "joined", "parts": list(parts)})
        return [r.captions["en"][0] for r in records(open_sources(recipe)["main"])]

    plain = {"source": "text", "path": str(tmp_path / "plain.txt"), "language": "en"}
    held = {"source": "text", "path": str(tmp_path / "held.txt"), "language": "en", "split": "test"}
    assert captions(str(folder), plain) == ["train", "one", "two"]
    assert captions(plain, held) == ["one", "two"]
    whole = open_data(str(folder))
    assert _trained_on(JoinedSource([whole, whole], [None, "train+validation"]), None) == [0, 2, 3]
