"""Multimodal Lexical Translation: its own format, MM-BERT's, and the real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora import SHARED, needs, records, write_lines

from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError

ROWS = [
    "young | jugendlich jung | a young man | ein junger mann | 11_a.jpg",
    "hat | hut | a man in a hat | ein mann mit hut | 12.jpg",
]


def test_a_row_has_a_word_its_translations_and_both_sentences(tmp_path: Path) -> None:
    write_lines(tmp_path / "test_sets/MLTtest2018ende.txt", ROWS)
    source = open_data({"source": "mlt", "root": tmp_path, "split": "test_2018", "images": tmp_path / "photos"})
    first, second = records(source)
    assert first.annotation == {"word": "young", "language": "de", "translations": ["jugendlich", "jung"]}
    assert first.captions == {"en": ("a young man",), "de": ("ein junger mann",)}
    assert first.image is not None and first.image.path == str(tmp_path / "photos" / "11_a.jpg")
    assert (first.group, first.id) == ("11_a.jpg", "test_2018:1")
    assert second.origin == f"{tmp_path}/test_sets/MLTtest2018ende.txt:2"


def test_the_files_of_mm_bert(tmp_path: Path) -> None:
    row = {
        "image": "images.zip@/11.jpg", "caption_en": "a young man", "caption_de": "ein junger mann",
        "frcnn": "features.zip@/00000011.json", "word_en": "young", "word_de": "jugendlich jung",
    }  # fmt: skip
    write_lines(tmp_path / "val_MLT_frcnn.json", [json.dumps(row)])
    (found,) = records(open_data({"source": "mlt", "root": tmp_path, "split": "validation", "form": "mmbert"}))
    assert found.annotation["translations"] == ["jugendlich", "jung"]
    assert (found.extra["file_name"], found.regions, found.image) == ("11.jpg", "00000011.json", None)
    with pytest.raises(ConfigError, match="German"):
        open_data({"source": "mlt", "root": tmp_path, "form": "mmbert", "language": "fr"})
    with pytest.raises(ConfigError, match="no split 'test_2017' in this form"):
        open_data({"source": "mlt", "root": tmp_path, "form": "mmbert", "split": "test_2017"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a | b | c", "3 columns where MLT has 5"),
        ("a | | c | d | e.jpg", "a column is empty"),
        ("a | b | c | d | ../e.jpg", "not the name of a file"),
    ],
)
def test_damaged_rows_are_refused_or_skipped(line: str, why: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "enfr_test2016.txt", [ROWS[0], line])
    spec = {"source": "mlt", "root": tmp_path, "split": "test_2016", "language": "fr"}
    with pytest.raises(DataError, match=rf"enfr_test2016.txt:2: .*{why}"):
        open_data(spec)
    bad = BadRecords(skip=True)
    assert len(open_data(spec, report=bad)) == 1
    assert len(bad) == 1


@pytest.mark.parametrize("line", ["[]", "{", '{"image": "a.zip@/a.jpg"}', '{"image": 3, "frcnn": "x"}'])
def test_damaged_json_is_refused(line: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "train_MLT_frcnn.json", [line])
    with pytest.raises(DataError, match=r"train_MLT_frcnn.json:1: the line"):
        open_data({"source": "mlt", "root": tmp_path, "form": "mmbert"})


@needs("mlt")
@pytest.mark.parametrize(("language", "images"), [("de", (630, 566, 311)), ("fr", (585, 596, 349))])
def test_the_real_test_sets_have_the_stated_numbers(language: str, images: tuple[int, ...], tmp_path: Path) -> None:
    """Numbers of images: the README beside the files."""
    splits = ("validation", "test_2016", "test_2017", "test_2018")
    made = prepare("mlt", SHARED / "mlt", tmp_path / "store", {"language": language, "split": ",".join(splits)})
    assert made.differences == []
    for split, count in zip(splits[1:], images, strict=True):
        found = records(open_data(f"{tmp_path}/store:{split}"))
        assert len({record.group for record in found}) == count
        several = sum(len(record.annotation["translations"]) > 1 for record in found)
        assert several == {"de": 300, "fr": 154}[language] * (split == "test_2018")


@needs("mlt")
def test_mm_bert_wrote_the_same_rows(tmp_path: Path) -> None:
    for split in ("test_2016", "test_2018"):
        ours, theirs = (
            records(open_data({"source": "mlt", "root": SHARED / "mlt", "split": split, "form": form}))
            for form in ("mlt", "mmbert")
        )
        assert [record.annotation for record in ours] == [record.annotation for record in theirs]
        assert [record.captions for record in ours] == [record.captions for record in theirs]
