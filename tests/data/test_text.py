"""Plain text and line-aligned files as sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_one_sentence_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\n two\u2028still two \nthree")
    source = open_data({"source": "text", "path": path, "language": "en", "split": "train"})
    assert [source[i].captions for i in range(len(source))] == [
        {"en": ("one",)},
        {"en": ("two\u2028still two",)},
        {"en": ("three",)},
    ]
    assert source[1].origin == f"{path}:3"
    assert source[1].image is None
    assert source[1].split == "train"
    assert source.languages == ("en",)


def test_aligned_files_make_one_record_a_line(tmp_path: Path) -> None:
    paths = {"de": write(tmp_path / "a.de", "eins\nzwei\n"), "en": write(tmp_path / "a.en", "one\ntwo\n")}
    source = open_data({"source": "text", "paths": paths})
    assert len(source) == 2
    assert source[1].captions == {"de": ("zwei",), "en": ("two",)}
    only = open_data({"source": "text", "paths": paths}, languages=["en"])
    assert only[1].captions == {"en": ("two",)}
    with pytest.raises(DataError, match="'fr'"):
        open_data({"source": "text", "paths": paths}, languages=["fr"])


def test_files_of_different_length_are_refused(tmp_path: Path) -> None:
    paths = {"de": write(tmp_path / "a.de", "eins\nzwei\n"), "en": write(tmp_path / "a.en", "one\n")}
    with pytest.raises(DataError, match=r"1 lines where .*a.de has 2"):
        open_data({"source": "text", "paths": paths})


def test_a_line_blank_in_one_language_is_a_bad_record(tmp_path: Path) -> None:
    paths = {"de": write(tmp_path / "a.de", "eins\n\ndrei\n\n"), "en": write(tmp_path / "a.en", "one\ntwo\nthree\n\n")}
    with pytest.raises(DataError, match=r"a.de:2: the line is blank"):
        open_data({"source": "text", "paths": paths})
    report = BadRecords(skip=True)
    source = open_data({"source": "text", "paths": paths}, report=report)
    assert [source[i].captions["en"] for i in range(len(source))] == [("one",), ("three",)]
    assert [where for where, _ in report] == [f"{paths['de']}:2"]


def test_unusable_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        open_data({"source": "text", "path": tmp_path / "gone.txt"})
    with pytest.raises(DataError, match=r"b.txt:2: not UTF-8"):
        open_data({"source": "text", "path": write(tmp_path / "b.txt", b"fine\n\xff\n")})
    with pytest.raises(DataError, match="no records"):
        open_data({"source": "text", "path": write(tmp_path / "c.txt", "\n \n")})


def test_one_of_path_and_paths_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data source 'text': give either path, or paths"):
        open_data({"source": "text"})
    with pytest.raises(ConfigError, match="language code"):
        open_data({"source": "text", "paths": {"german!": tmp_path / "a"}})
