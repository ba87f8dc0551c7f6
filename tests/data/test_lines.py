"""Mapped text files, and which lines of files that belong together can be used."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import pytest
from corpora import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.data import lines as module
from mmbert.data.lines import Lines, Segments, aligned
from mmbert.data.records import BadRecords
from mmbert.errors import DataError


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), max_size=9), max_size=7))
@settings(deadline=None, max_examples=30)
def test_the_lines_are_those_between_line_feeds(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    raw = "\n".join(texts).encode()
    folder = tmp_path_factory.mktemp("lines")
    for path, content in ((folder / "a.txt", raw), (folder / "a.txt.gz", gzip.compress(raw))):
        path.write_bytes(content)
        found = Lines(path)
        expected = raw.decode().removeprefix("\ufeff").split("\n")
        if not expected[-1] and (len(expected) > 1 or not raw):
            expected.pop()
        assert [found[i] for i in range(len(found))] == [text.strip() for text in expected]


def test_a_line_of_a_large_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)  # line feeds fall before, on and behind the cuts
    monkeypatch.setattr(module, "_SMALL", 0)
    found = Lines(write_lines(tmp_path / "a.gz", [f"line {i}" for i in range(30)]))
    assert [found[i] for i in (0, 1, 13, 29)] == ["line 0", "line 1", "line 13", "line 29"]
    with pytest.raises(IndexError):
        found[30]
    again = pickle.loads(pickle.dumps(found))
    assert [again[i] for i in range(len(again))] == [found[i] for i in range(len(found))]


def test_damaged_files_say_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.txt: cannot be read"):
        Lines(tmp_path / "gone.txt")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(bytes(range(200)) * 9)[:-20])
    with pytest.raises(DataError, match=r"cut.gz: cannot be read"):
        Lines(tmp_path / "cut.gz")
    (tmp_path / "no.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"no.gz: cannot be read"):
        Lines(tmp_path / "no.gz")
    (tmp_path / "latin.txt").write_bytes(b"one\nf\xfcnf\n")
    found = Lines(tmp_path / "latin.txt")
    assert found[0] == "one"
    with pytest.raises(DataError, match=r"latin.txt:2: not UTF-8"):
        found[1]
    assert Lines(tmp_path / "latin.txt", "latin-1")[1] == "fünf"


def test_a_file_that_unpacks_to_absurd_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(3_000_000)))
    assert len(Lines(tmp_path / "bomb.gz")) == 1
    monkeypatch.setattr(module, "MAX_EXPANSION", -64_000_000)
    with pytest.raises(DataError, match="absurd size"):
        Lines(tmp_path / "bomb.gz")


def test_lines_that_not_all_can_use(tmp_path: Path) -> None:
    columns = {
        "en": Lines(write_lines(tmp_path / "a.en", ["one", "", "three", "", "five"])),
        "de": Lines(write_lines(tmp_path / "a.de", ["eins", "zwei", "drei", "", "fünf"])),
    }
    with pytest.raises(DataError, match=r"a.en:2: the line is blank"):
        aligned(columns, BadRecords())
    bad = BadRecords(skip=True)
    assert aligned(columns, bad).tolist() == [0, 2, 4]
    assert [where for where, _ in bad] == [f"{tmp_path}/a.en:2"]
    assert aligned(columns, BadRecords(), blank_is_bad=False).tolist() == [0, 2, 4]
    short = Lines(write_lines(tmp_path / "a.fr", ["un"]))
    with pytest.raises(DataError, match=r"a.fr: 1 lines where .*a.en has 5"):
        aligned({**columns, "fr": short}, BadRecords(skip=True))


def test_segments_of_a_test_set(tmp_path: Path) -> None:
    text = ['<refset setid="x">', "<doc>", '<seg id="1">A &amp; B</seg>', "<p>", '<seg id="2"> two </seg>', "</doc>"]
    found = Segments(write_lines(tmp_path / "a.sgm", text))
    assert [found[i] for i in range(len(found))] == ["A & B", "two"]
    assert found.where(1) == f"{tmp_path}/a.sgm:5"
    with pytest.raises(DataError, match=r"b.sgm:1: a segment without an end"):
        Segments(write_lines(tmp_path / "b.sgm", ['<seg id="1">cut']))[0]
