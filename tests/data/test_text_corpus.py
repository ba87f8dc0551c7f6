"""Running text: documents, and sentences packed into records."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import records, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.data.sources.text_corpus import cut_runs
from mmbert.errors import CheckpointError, ConfigError, DataError
from mmbert.text.tokenizer import train_tokenizer

DOCUMENTS = ["a b c", "d e", "f", "", "", "g h", "i"]


def texts(root: Path, **options: object) -> list[str]:
    return [
        record.captions["en"][0] for record in records(open_data({"source": "text_corpus", "root": root, **options}))
    ]


def test_one_sentence_a_record(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.doc.gz", ["z"])
    write_lines(tmp_path / "a.doc", DOCUMENTS)
    source = open_data({"source": "text_corpus", "root": tmp_path, "split": "train", "language": "de"})
    found = records(source)
    assert [record.captions["de"] for record in found] == [(t,) for t in ("a b c", "d e", "f", "g h", "i", "z")]
    assert [record.id for record in found][2:4] == ["a.doc:3", "a.doc:6"]
    assert (found[0].split, source.languages) == ("train", ("de",))
    assert source.counts == {"documents": 3}  # type: ignore[attr-defined]


def test_sentences_of_one_document_are_packed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.doc", DOCUMENTS)
    assert texts(path, pack=4) == ["a b c d e", "f", "g h i"]
    assert texts(path, pack=4, most=4) == ["a b c", "d e f", "g h i"]
    assert texts(path, pack=100) == ["a b c d e f", "g h i"]


@pytest.mark.slow
def test_units_are_the_pieces_of_a_tokenizer(tmp_path: Path) -> None:
    sentences = [f"the dog number {i} runs" for i in range(12)]
    path = write_lines(tmp_path / "a.doc", sentences)
    tokenizer = train_tokenizer(sentences, vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    found = texts(path, pack=20, most=30, tokenizer=str(tmp_path / "tokenizer"))
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in found]
    assert " ".join(found) == " ".join(sentences)
    assert len(found) > 1
    assert all(20 <= length <= 30 for length in lengths[:-1])
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        texts(path, pack=20, tokenizer=str(tmp_path))


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 12), st.none() | st.integers(0, 8))
@settings(deadline=None)
def test_runs_cover_every_sentence_once_within_their_bounds(lengths: list[int], pack: int, over: int | None) -> None:
    most = None if over is None else max(1, pack + over)
    runs = cut_runs(lengths, pack, most)
    assert [i for a, b in runs for i in range(a, b)] == list(range(len(lengths)))
    for place, (a, b) in enumerate(runs):
        total = sum(lengths[a:b])
        assert b - a == 1 or most is None or total <= most
        if place + 1 < len(runs) and total < pack:  # cut short only because the next sentence did not fit
            assert most is not None and total + lengths[b] > most
        assert b - a == 1 or total - lengths[b - 1] < max(pack, 1), "it would have ended a sentence before"


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: \*.doc"):
        texts(tmp_path)
    path = write_lines(tmp_path / "a.doc", ["", " "])
    with pytest.raises(DataError, match="no text"):
        texts(path)
    path.write_bytes(b"one\n\xff\xfe\nthree\n")
    with pytest.raises(DataError, match=r"a.doc:2: not UTF-8"):
        texts(path)
    bad = BadRecords(skip=True)
    found = records(open_data({"source": "text_corpus", "root": path, "pack": 9}, report=bad))
    assert [record.captions["en"] for record in found] == [("one",), ("three",)], "nothing is joined over the gap"
    assert len(bad) == 1
    with pytest.raises(ConfigError, match="most is below pack"):
        texts(path, pack=5, most=4)
