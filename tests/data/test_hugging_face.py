"""Data sets of the library datasets, from disk."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from corpora import records, write_image
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets

from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two splits on disk: images in the table, captions in two languages."""
    rows: dict[str, Any] = {
        "picture": [{"bytes": png(c), "path": None} for c in ("red", "blue", "green")],
        "german": ["rot", "blau", "grün"],
        "english": [["red", " a red thing "], ["blue"], ["green"]],
        "number": [7, 8, 9],
        "scene": ["x", "x", "y"],
    }
    train = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    both = datasets.DatasetDict({"train": train, "test": train.select([2])})
    both.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


COLUMNS = {"captions": {"de": "german", "en": "english"}, "image": "picture"}


def test_columns_become_records(saved: Path) -> None:
    more = {"id": "number", "group": "scene", "extra": ["number"], "annotation": ["scene"]}
    source = open_data({"source": "hugging_face", "root": saved, "split": "train", **COLUMNS, **more})
    first, second, third = records(source)
    assert first.captions == {"de": ("rot",), "en": ("red", "a red thing")}
    assert first.image is not None and first.image.data == png("red")
    assert first.image.key != second.image.key  # type: ignore[union-attr]
    assert (first.id, first.group, second.group, third.group) == ("7", "x", "x", "y")
    assert (first.extra, first.annotation, first.split) == ({"number": 7}, {"scene": "x"}, "train")
    assert source.languages == ("de", "en")


def test_a_row_without_id_or_group_has_the_usual_ones_and_no_id_is_there_twice(tmp_path: Path) -> None:
    rows = {"text": ["a", "b", "c", "d"], "key": ["x", None, None, "x"], "scene": ["s", None, "s", "s"]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    spec = {"source": "hugging_face", "root": tmp_path / "a.parquet", "captions": "text", "id": "key", "group": "scene"}
    with pytest.raises(DataError, match="id 'x' is already that of row 0") as caught:
        open_data(spec)
    assert str(caught.value.where).endswith("row 3")
    found = records(open_data(spec, report=BadRecords(skip=True)))
    assert [(r.id, r.group) for r in found] == [("x", "s"), ("1", "1"), ("2", "s")]


def test_a_data_set_becomes_a_store_with_all_its_splits(saved: Path, tmp_path: Path) -> None:
    made = prepare("hugging_face", saved, tmp_path / "store", COLUMNS)
    assert {name: split.counts["records"] for name, split in made.splits.items()} == {"train": 3, "test": 1}
    found = records(open_data(f"{tmp_path}/store:test"))
    assert found[0].captions == {"de": ("grün",), "en": ("green",)}
    assert found[0].image is not None and found[0].image.data == png("green")


def test_files_and_columns_in_columns(tmp_path: Path) -> None:
    rows = {"translation": [{"en": "a dog", "de": "ein Hund"}, {"en": "a cat", "de": None}], "file": ["a.png", "b.png"]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    write_image(tmp_path / "photos/a.png")
    spec = {"source": "hugging_face", "root": tmp_path / "a.parquet", "image": "file", "images": tmp_path / "photos"}
    first, second = records(open_data(spec, captions={"*": "translation"}))
    assert first.captions == {"en": ("a dog",), "de": ("ein Hund",)}
    assert second.captions == {"en": ("a cat",)}
    assert first.image is not None and first.image.path == str(tmp_path / "photos/a.png")
    one = open_data(spec, captions={"de": "translation.de"}, report=BadRecords(skip=True))
    assert [record.captions for record in records(one)] == [{"de": ("ein Hund",)}]


def test_what_is_not_there_is_named(saved: Path, tmp_path: Path) -> None:
    spec = {"source": "hugging_face", "root": saved}
    with pytest.raises(ConfigError, match="no split None") as caught:
        open_data(spec, captions="german")
    assert "train, test" in str(caught.value)
    with pytest.raises(ConfigError, match="no column 'germn'"):
        open_data(spec, split="train", captions="germn")
    with pytest.raises(ConfigError, match="no column is named"):
        open_data(spec, split="train")
    with pytest.raises(ConfigError, match="not a language code"):
        open_data(spec, split="train", captions={"german!": "german"})
    with pytest.raises(DataError, match="holds a number"):
        open_data(spec, split="train", captions="number")
    with pytest.raises(DataError, match="no usable data set"):
        open_data({"source": "hugging_face", "root": tmp_path / "gone", "captions": "x"})
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no format of a data set"):
        open_data({"source": "hugging_face", "root": tmp_path / "a.txt", "captions": "x"})
