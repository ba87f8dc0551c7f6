"""Corpora one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import records, write_lines

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
