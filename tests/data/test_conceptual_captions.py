"""Conceptual Captions in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import records, write_image, write_lines

from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords
from mmbert.data.sources import conceptual_captions, open_data
from mmbert.data.sources.conceptual_captions import Options, links
from mmbert.errors import ConfigError, DataError

TABLE = "Validation_GCC-1.1.0-Validation.tsv"


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    write_lines(tmp_path / TABLE, [f"caption {i}\thttp://host/{i}.png" for i in range(4)])
    for i in (1, 3):
        write_image(tmp_path / f"images/validation/00000/0000000{i}.jpg")
    (tmp_path / "images/validation/links.jsonl").write_text("")
    return tmp_path


def test_captions_alone(downloads: Path) -> None:
    found = records(open_data({"source": "conceptual_captions", "root": downloads, "split": "validation"}))
    assert [record.captions["en"] for record in found] == [(f"caption {i}",) for i in range(4)]
    assert found[2].extra == {"url": "http://host/2.png"}
    assert found[2].origin == f"{downloads}/{TABLE}:3"
    assert found[2].image is None


def test_captions_without_their_image_are_left_out_and_counted(downloads: Path) -> None:
    options = {"split": "validation", "images": downloads / "images"}
    with pytest.raises(DataError, match=r"lines 4 instead of 15,840"):
        prepare("conceptual_captions", downloads, downloads / "store", options)
    made = prepare("conceptual_captions", downloads, downloads / "store", options, allow_incomplete=True)
    counts = made.splits["validation"].counts
    assert (counts["lines"], counts["without_image"], counts["records"], counts["images"]) == (4, 2, 2, 2)
    found = records(open_data(str(downloads / "store")))
    assert [record.captions["en"][0] for record in found] == ["caption 1", "caption 3"]
    assert found[0].image is not None and found[0].image.key == "validation/00000/00000001.jpg"
    assert found[0].image.path is not None and Path(found[0].image.path).is_file()


def test_no_image_at_all_is_an_error(downloads: Path) -> None:
    with pytest.raises(DataError, match="none of the images is there") as caught:
        open_data({"source": "conceptual_captions", "root": downloads, "split": "validation"}, images=downloads)
    assert "mmbert data download" in str(caught.value)


def test_links_name_a_file_for_each_line(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conceptual_captions, "_PER_FOLDER", 2)
    write_lines(downloads / TABLE, ["a\thttp://host/a", "no address", "c\thttp://host/c"])
    bad = BadRecords(skip=True)
    assert list(links(Options(root=downloads, split="validation"), bad)) == [
        ("validation/00000/00000000.jpg", "http://host/a", f"{downloads}/{TABLE}:1"),
        ("validation/00001/00000002.jpg", "http://host/c", f"{downloads}/{TABLE}:3"),
    ]
    assert [where for where, _ in bad] == [f"{downloads}/{TABLE}:2"]


def test_bad_lines_and_names(downloads: Path) -> None:
    spec = {"source": "conceptual_captions", "root": downloads, "split": "validation"}
    with pytest.raises(DataError, match=r"missing: Train_GCC-training.tsv"):
        open_data(spec, split="train")
    with pytest.raises(ConfigError, match="no split 'dev'"):
        open_data(spec, split="dev")
    write_lines(downloads / TABLE, ["a\thttp://host/a", "a\tb\tc"])
    with pytest.raises(DataError, match=r"tsv:2: not a caption and an address"):
        open_data(spec)
