"""Corpora one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import records, write_image, write_lines

from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_lines(tmp_path / "a.txt", ["one", "two"])
    write_lines(tmp_path / "b.txt", ["drei", "vier", "fünf"])
    return tmp_path


def test_records_follow_each_other(texts: Path) -> None:
    parts = [
        {"source": "text", "path": "{root}/a.txt", "language": "en"},
        {"source": "text", "path": "{root}/b.txt", "language": "de", "split": "train"},
    ]
    source = open_data({"source": "joined", "root": str(texts), "parts": parts, "split": "test"})
    assert [next(iter(r.captions.values()))[0] for r in records(source)] == ["one", "two", "drei", "vier", "fünf"]
    assert [r.split for r in records(source)] == ["test", "test", "train", "train", "train"]
    assert source.languages == ("en", "de")
    with pytest.raises(IndexError):
        source[5]


def test_a_root_may_stand_for_the_folder_of_single_files(texts: Path) -> None:
    paths = {"en": "{root}/a.txt", "de": "{root}/c.txt"}
    write_lines(texts / "c.txt", ["eins", "zwei"])
    source = open_data({"source": "text", "root": str(texts), "paths": paths})
    assert [r.captions["de"] for r in records(source)] == [("eins",), ("zwei",)]
    with pytest.raises(ConfigError, match="unknown option 'root'"):
        open_data({"source": "text", "root": str(texts), "path": str(texts / "a.txt")})


def test_a_wrong_part_is_an_error(texts: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        open_data({"source": "joined", "parts": [{"source": "text", "path": str(texts / "none.txt")}]})
    with pytest.raises(ConfigError, match="parts"):
        open_data({"source": "joined", "parts": []})


def folders(root: Path) -> tuple[Path, Path]:
    """Two folders whose pictures have the same names, the second all in split test."""
    for name, colour in (("a", "red"), ("b", "blue")):
        (root / name).mkdir()
        lines = ["file_name,caption_en,split"]
        for number in range(2):
            write_image(root / name / f"{number}.png", colour)
            lines.append(f"{number}.png,{colour} {number},{'test' if name == 'b' else 'train'}")
        write_lines(root / name / "metadata.csv", lines)
    return root / "a", root / "b"


def test_names_that_mean_something_else_stay_apart(tmp_path: Path) -> None:
    first, second = folders(tmp_path)
    source = open_data({"source": "joined", "parts": [str(first), str(second)]})
    found = records(source)
    assert [r.id for r in found] == ["0.png", "1.png", "2/0.png", "2/1.png"]
    assert len({r.image.key for r in found if r.image is not None}) == len({r.group for r in found}) == 4
    assert all(r.image is not None and Path(str(r.image.path)).is_file() for r in found)


def test_texts_of_one_number_stay_apart(texts: Path) -> None:
    parts = [{"source": "text", "path": str(texts / name), "language": "en"} for name in ("a.txt", "a.txt", "b.txt")]
    assert len({r.id for r in records(open_data({"source": "joined", "parts": parts}))}) == 7


def test_the_same_pictures_keep_their_names(tmp_path: Path) -> None:
    first, _ = folders(tmp_path)
    source = open_data(
        {"source": "joined", "parts": [str(first), f"{first}:train", {"source": "folder", "root": first}]}
    )
    assert [r.id for r in records(source)] == ["0.png", "1.png"] * 3


def test_the_split_of_all_is_that_of_parts_in_one_word(tmp_path: Path) -> None:
    first, second = folders(tmp_path)
    source = open_data(
        {"source": "joined", "parts": [f"{first}:train", {"source": "folder", "root": str(second)}], "split": "test"}
    )
    assert [r.split for r in records(source)] == ["train", "train", "test", "test"]
    with pytest.raises(DataError):
        open_data({"source": "joined", "parts": [str(first), str(second)], "split": "test"})
