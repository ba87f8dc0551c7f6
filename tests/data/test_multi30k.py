"""Multi30k in small, and the real captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import SHARED, needs, records, write_lines, write_multi30k

from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError


def test_the_languages_of_task_1_and_their_images(tmp_path: Path) -> None:
    root = write_multi30k(tmp_path / "data")
    spec = {
        "source": "multi30k",
        "root": tmp_path,
        "split": "validation",
        "languages": "de en",
    }  # the repository itself
    found = records(open_data(spec, images=root / "images"))
    assert [record.id for record in found] == ["b0.jpg", "b1.jpg", "b2.jpg", "b3.jpg"]
    assert found[3].captions == {"de": ("de b 3",), "en": ("en b 3",)}
    assert found[3].origin == f"{root}/task1/raw/val.de.gz:4"
    assert found[3].image is not None and found[3].image.path == str(root / "images" / "b3.jpg")
    assert found[3].split == "validation"


def test_task_2_has_five_captions_for_each_image(tmp_path: Path) -> None:
    write_lines(tmp_path / "task2/image_splits/val_images.txt", ["a.jpg", "b.jpg"])
    for code in ("en", "de"):
        for k in range(1, 6):
            write_lines(tmp_path / f"task2/raw/val.{k}.{code}.gz", [f"{code} a {k}", f"{code} b {k}"])
    found = records(open_data({"source": "multi30k", "root": tmp_path, "split": "validation", "task": 2}))
    assert found[1].captions["de"] == ("de b 1", "de b 2", "de b 3", "de b 4", "de b 5")
    (tmp_path / "task2/raw/val.4.de.gz").unlink()
    with pytest.raises(DataError, match=r"missing: task2/raw/val.4.de"):
        open_data({"source": "multi30k", "root": tmp_path, "split": "validation", "task": 2})


def test_bad_lines_are_refused_or_skipped(tmp_path: Path) -> None:
    root = write_multi30k(tmp_path)
    spec = {"source": "multi30k", "root": root, "languages": "en,de"}
    write_lines(root / "task1/raw/train.en", ["one", "", "three", "four"])
    with pytest.raises(DataError, match=r"train.en:2: the line is blank"):
        open_data(spec)
    bad = BadRecords(skip=True)
    assert [record.id for record in records(open_data(spec, report=bad))] == ["a0.jpg", "a2.jpg", "a3.jpg"]
    assert len(bad) == 1
    write_lines(root / "task1/raw/train.en", ["one", "two"])
    with pytest.raises(DataError, match=r"train.en: 2 lines where .*train.txt has 4"):
        open_data(spec)
    write_lines(root / "task1/raw/train.en", ["one", "two", "three", "four"])
    write_lines(root / "task1/image_splits/train.txt", ["a.jpg", "../b.jpg", "c.jpg", "d.jpg"])
    with pytest.raises(DataError, match=r"train.txt:2: '../b.jpg' is not the name of a file"):
        open_data(spec)


def test_what_was_never_published_is_a_config_error(tmp_path: Path) -> None:
    spec = {"source": "multi30k", "root": tmp_path}
    with pytest.raises(ConfigError, match="task 2 has no language 'fr'"):
        open_data(spec, task=2, languages="fr")
    with pytest.raises(ConfigError, match="no split 'dev'"):
        open_data(spec, split="dev")
    with pytest.raises(ConfigError, match="task 2 has no split 'test_2018'"):
        open_data(spec, split="test_2018", task=2)
    with pytest.raises(ConfigError, match="split 'test_2017' has no cs"):
        open_data(spec, split="test_2017", languages="cs")


@needs("multi30k")
def test_the_real_captions_have_the_published_numbers(tmp_path: Path) -> None:
    splits = "validation test_2016 test_2017 test_2018"
    made = prepare("multi30k", SHARED / "multi30k", tmp_path / "store", {"split": splits})
    assert {name: split.counts["captions"] for name, split in made.splits.items()} == {
        "validation": 4 * 1014, "test_2016": 4 * 1000, "test_2017": 3 * 1000, "test_2018": 4 * 1071,
    }  # fmt: skip
    assert made.differences == []
    assert made.splits["test_2017"].languages == ["en", "de", "fr"]
    names = (SHARED / "multi30k/task1/image_splits/test_2018_flickr.txt").read_text().split()
    assert [record.id for record in records(open_data(f"{tmp_path}/store:test_2018"))] == names


@needs("multi30k")
@pytest.mark.slow
@pytest.mark.parametrize(("task", "captions"), [(1, 4 * 29000), (2, 10 * 29000)])
def test_the_real_training_captions_have_the_published_numbers(task: int, captions: int, tmp_path: Path) -> None:
    options = {"split": "train", "task": task}
    made = prepare("multi30k", SHARED / "multi30k", tmp_path / "store", options)
    assert made.splits["train"].counts["records"] == 29000
    assert made.splits["train"].counts["captions"] == captions
