"""Training on a store that lies elsewhere: it goes on exactly where it was, and says what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from remote import uploaded, write_store
from safetensors.torch import load_file
from stopping import interrupt

from mmbert.data.records import ImageRef, Record
from mmbert.data.sources import open_data
from mmbert.data.streaming import StreamedComponent
from mmbert.errors import ConfigError
from mmbert.training import build
from mmbert.training.recipe import Recipe
from mmbert.training.run import train

torch.set_num_threads(1)
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def url(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nine pictures to train on and three to measure, in the shards."""
    source = open_data(str(photos))
    found: list[Record] = []
    for record in (source[i] for i in range(len(source))):
        assert record.image is not None
        path = Path(str(record.image.path))
        found.append(replace(record, image=ImageRef(data=path.read_bytes(), key=path.name)))
    splits = {
        "train": [replace(record, split="train") for record in found[:9]],
        "validation": [replace(record, split="validation") for record in found[9:]],
    }
    return uploaded(write_store(tmp_path / "store", splits, monkeypatch, rows=2), "photos")


@pytest.fixture
def streamed(recipe_of: MakeRecipe, url: str) -> MakeRecipe:
    def make(**changes: Any) -> Recipe:
        parts: dict[str, Any] = {name: {"data": None} for name in ("main", "masked")}
        data = {"source": "stream", "root": url, "lanes": 2, "window": 1}
        return recipe_of(**{"data": data, "components": parts, "save_every": 3} | changes)

    return make


def test_an_interrupted_run_ends_as_if_nothing_had_been(streamed: MakeRecipe, tmp_path: Path) -> None:
    recipe = streamed(evaluation={"every": 4, "query_bank": 3})
    undisturbed = train(recipe, tmp_path / "undisturbed")
    interrupt(recipe, tmp_path / "interrupted", 5)
    assert (tmp_path / "interrupted" / "state" / "checkpoint-3" / "mixture-0.json").is_file()
    resumed = train(recipe, tmp_path / "interrupted")
    for name in ("last", "best"):
        one, other = (load_file(run.folder / name / "model.safetensors") for run in (resumed, undisturbed))
        assert all(torch.equal(one[k], other[k]) for k in other)
    assert resumed.metrics["evaluation"] == undisturbed.metrics["evaluation"]
    assert resumed.metrics["evaluation"]["text_to_image"]["mean"]["R@5"] == 1.0, "three pictures to choose from"


def test_the_train_split_is_trained_on_and_nothing_is_fetched_before(streamed: MakeRecipe) -> None:
    recipe = streamed()
    sources = build.open_sources(recipe)
    source = sources["main"]
    assert len(source) == 9
    assert source._cache.fetched == []  # type: ignore[attr-defined]
    assert [record.split for record in build.evaluation_records(recipe)] == ["validation"] * 3


def test_a_file_of_several_splits_is_trained_on_without_those_held_out(
    streamed: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = [Record(f"r{i}", captions={"en": ("x",)}, split=("validation", None)[i % 2]) for i in range(10)]
    url = uploaded(write_store(tmp_path / "mixed", {"all": mixed}, monkeypatch), "mixed")
    source = build.open_sources(streamed(data=url))["main"]

    class Anything:
        def cost(self, record: Record) -> int:
            return 1

    part = StreamedComponent("main", source, Anything(), 100)  # type: ignore[arg-type]
    assert {source[i].split for n in range(2) for i in part.batch(n).tolist()} == {None}


def test_what_streams_cannot_do_is_told(streamed: MakeRecipe, url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give steps instead of epochs"):
        train(streamed(steps=None, epochs=1), tmp_path / "out")
    with pytest.raises(ConfigError, match="leave --skip-bad out"):
        train(streamed(), tmp_path / "out", skip_bad=True)
    with pytest.raises(ConfigError, match="alike is not for streams"):
        train(streamed(components={"main": {"data": url, "alike": 4}, "masked": {"data": url}}), tmp_path / "out")


def test_a_recipe_about_a_corpus_takes_its_store_from_a_url(streamed: MakeRecipe, url: str) -> None:
    from mmbert.training.corpora import run_data

    data = {"source": "multi30k", "root": url}
    with pytest.raises(ConfigError, match="a store of tests, where the recipe is about multi30k"):
        run_data(streamed(data=data))
    assert run_data(streamed(data={"root": f"{url}:train"})) == {"source": "stream", "root": url, "split": "train"}
