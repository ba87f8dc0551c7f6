"""Training on a store that ``mmbert data prepare`` made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import write_multi30k

from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords
from mmbert.data.sources import multi30k
from mmbert.training.build import evaluation_records, open_sources
from mmbert.training.recipe import Recipe
from mmbert.training.run import train


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(multi30k, "SPLITS", ("train", "validation"))
    monkeypatch.setattr(multi30k, "RECORDS", {"train": 4, "validation": 4})
    downloads = write_multi30k(tmp_path / "downloads")
    prepare("multi30k", downloads, tmp_path / "store", {"languages": "en,de", "images": downloads / "images"})
    return tmp_path / "store"


def test_a_run_learns_from_the_training_split_and_measures_on_the_other(
    store: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(
        steps=2, data=str(store), components={"main": {"data": None}, "masked": {"data": None}}, evaluation={"every": 2}
    )
    report = BadRecords()
    source = open_sources(recipe, report)["main"]
    assert {source[i].split for i in range(len(source))} == {"train"}
    assert {record.split for record in evaluation_records(recipe)} == {"validation"}
    result = train(recipe, tmp_path / "run")
    assert result.model.name == "best"
    assert result.metrics["evaluation"]["text_to_image"]["de"]["R@10"] == 1.0
