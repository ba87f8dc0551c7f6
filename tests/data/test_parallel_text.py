"""Line-aligned text: any pair, Europarl, WMT14."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import records, write_lines

from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError


def write_pair(root: Path, name: str, lines: dict[str, list[str]], packed: str = "") -> None:
    for code, texts in lines.items():
        write_lines(root / f"{name}.{code}{packed}", texts)


def test_several_files_of_several_languages_one_after_the_other(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", {"en": ["one", "two"], "de": ["eins", "zwei"], "fr": ["un", "deux"]})
    write_pair(tmp_path, "sub/b", {"en": ["three"], "de": ["drei"], "fr": ["trois"]}, ".gz")
    spec = {"source": "parallel_text", "root": tmp_path, "files": "a,sub/b", "languages": "de,en,fr", "split": "train"}
    source = open_data(spec)
    found = records(source)
    assert [record.captions["de"] for record in found] == [("eins",), ("zwei",), ("drei",)]
    assert found[2].captions == {"de": ("drei",), "en": ("three",), "fr": ("trois",)}
    assert [record.id for record in found] == ["a.de:1", "a.de:2", "b.de.gz:1"]
    assert (source.languages, found[0].split, found[0].image) == (("de", "en", "fr"), "train", None)
    with pytest.raises(IndexError):
        source[3]


def test_blank_lines_are_bad_unless_the_corpus_is_known_for_them(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", {"en": ["one", "", "three"], "de": ["eins", "zwei", "drei"]})
    spec = {"source": "parallel_text", "root": tmp_path, "files": "a", "languages": "en,de"}
    with pytest.raises(DataError, match=r"a.en:2: the line is blank"):
        open_data(spec)
    bad = BadRecords(skip=True)
    assert len(open_data(spec, report=bad)) == 2
    assert len(bad) == 1
    made = prepare(
        "parallel_text", tmp_path, tmp_path / "store", {"files": "a", "languages": "en,de", "blank_is_bad": False}
    )
    assert made.splits["all"].counts["lines"] == 3
    assert made.splits["all"].counts["lines_left_out"] == 1
    assert len(open_data(str(tmp_path / "store"))) == 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", {"en": ["one"]})
    spec = {"source": "parallel_text", "root": tmp_path, "files": "a,b"}
    with pytest.raises(DataError, match=r"missing: a.de, b.en, b.de"):
        open_data(spec, languages="en,de")
    with pytest.raises(ConfigError, match="two languages"):
        open_data(spec, languages="en")


def test_europarl(tmp_path: Path) -> None:
    write_pair(tmp_path, "europarl-v7.de-en", {"en": ["Yes.", "", "No."], "de": ["Ja.", "x", "Nein."]})
    found = records(open_data({"source": "europarl", "root": tmp_path}))
    assert [record.captions for record in found] == [
        {"en": ("Yes.",), "de": ("Ja.",)},
        {"en": ("No.",), "de": ("Nein.",)},
    ]
    with pytest.raises(DataError, match=r"train: lines 3 instead of 1,920,209 \(1,920,206 missing\)"):
        prepare("europarl", tmp_path, tmp_path / "store")
    made = prepare("europarl", tmp_path, tmp_path / "store", allow_incomplete=True)
    assert [str(d) for d in made.differences] == ["train: lines 3 instead of 1,920,209 (1,920,206 missing)"]
    for languages in ("de,fr", "en", "en,xx"):
        with pytest.raises(ConfigError, match="pairs English with one other language"):
            open_data({"source": "europarl", "root": tmp_path, "languages": languages})


def test_wmt14(tmp_path: Path) -> None:
    for name in ("training/europarl-v7", "commoncrawl", "training/news-commentary-v9"):
        write_pair(tmp_path, f"{name}.de-en", {"en": [f"e {name[-3:]}"], "de": [f"d {name[-3:]}"]})
    write_lines(tmp_path / "test-full/newstest2014-deen-src.en.sgm", ["<doc>", '<seg id="1">Gutach &amp; more</seg>'])
    write_lines(
        tmp_path / "test-full/newstest2014-deen-ref.de.sgm", ["<doc>", "<p>", '<seg id="1">Gutach & mehr</seg>']
    )
    train = records(open_data({"source": "wmt14", "root": tmp_path}))
    assert [record.captions["de"] for record in train] == [("d -v7",), ("d awl",), ("d -v9",)]
    (test,) = records(open_data({"source": "wmt14", "root": tmp_path, "split": "test"}))
    assert test.captions == {"en": ("Gutach & more",), "de": ("Gutach & mehr",)}
    with pytest.raises(DataError, match=r"missing: newstest2013.en, newstest2013.de"):
        open_data({"source": "wmt14", "root": tmp_path, "split": "validation"})
    with pytest.raises(ConfigError, match="no split 'dev'"):
        open_data({"source": "wmt14", "root": tmp_path, "split": "dev"})
