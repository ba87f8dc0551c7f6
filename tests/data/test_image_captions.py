"""COCO captions, Flickr30k and Flickr30k Entities from files in their official layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vl_corpora import (
    ENTITIES_XML,
    make_coco_karpathy,
    make_coco_official,
    make_flickr30k,
    make_flickr30k_entities,
    write_json,
)

from mmbert.data.corpus import MissingFiles
from mmbert.data.records import BadRecords, Record, Source
from mmbert.data.sources import open_data
from mmbert.data.sources.flickr30k_entities import parse_sentence
from mmbert.errors import ConfigError, DataError


def records(source: Source) -> list[Record]:
    return [source[i] for i in range(len(source))]


def test_karpathys_splits_can_be_joined(tmp_path: Path) -> None:
    make_coco_karpathy(tmp_path)
    source = open_data({"source": "coco_captions", "root": tmp_path, "split": "train+restval"})
    found = records(source)
    assert [(r.id, r.split) for r in found] == [
        ("train2014/COCO_train2014_000000000001.jpg", "train"),
        ("train2014/COCO_train2014_000000000002.jpg", "train"),
        ("val2014/COCO_val2014_000000000003.jpg", "restval"),
    ]
    assert found[0].captions == {"en": ("A blue image.", "Number 1")}
    assert found[0].annotation == {"image_id": 1, "sentence_ids": [10, 11]}
    assert found[2].image is not None and Path(found[2].image.path or "").is_file()
    assert found[2].origin == "dataset_coco.json:images[3]"
    assert source.languages == ("en",)


def test_images_may_lie_elsewhere_or_not_be_there(tmp_path: Path) -> None:
    make_coco_karpathy(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "dataset_coco.json").rename(tmp_path / "b" / "dataset_coco.json")
    options: dict[str, Any] = {"source": "coco_captions", "root": tmp_path / "b", "split": "val"}
    with pytest.raises(MissingFiles, match="val2014/"):
        open_data(options)
    assert records(open_data(options, images=tmp_path / "a"))[0].image is not None
    (image,) = (r.image for r in records(open_data(options, check_images=False)))
    assert image is not None and image.key == "val2014/COCO_val2014_000000000004.jpg"
    (tmp_path / "a" / "val2014" / "COCO_val2014_000000000004.jpg").unlink()
    with pytest.raises(DataError, match=r"no image val2014/COCO_val2014_000000000004\.jpg"):
        open_data(options, images=tmp_path / "a")


def test_damaged_entries_stop_or_are_counted(tmp_path: Path) -> None:
    written = make_coco_karpathy(tmp_path)
    first, second = written["images"][:2]
    del first["sentences"][1]["raw"]
    second["filepath"] = "../train2014"
    twice = dict(written["images"][2], split="train")
    written["images"] += [twice, dict(twice), dict(first, split="dev"), {"split": "train"}, 7]
    write_json(tmp_path / "dataset_coco.json", written)
    with pytest.raises(DataError, match="'raw' is missing") as caught:
        open_data({"source": "coco_captions", "root": tmp_path})
    assert caught.value.where == "dataset_coco.json:images[1]"
    report = BadRecords(skip=True)
    source = open_data({"source": "coco_captions", "root": tmp_path}, report=report)
    assert [r.id for r in records(source)] == ["val2014/COCO_val2014_000000000003.jpg"]
    reasons = ["'raw' is missing", "outside", "listed twice", "unknown split", "'filepath' is missing", "a number (7)"]
    assert [number for _, number in report] != []
    for (where, message), reason in zip(report, reasons, strict=True):
        assert reason in message
        assert where.startswith("dataset_coco.json:images[")


def test_an_unknown_split_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'tran'") as caught:
        open_data({"source": "coco_captions", "root": tmp_path, "split": "val+tran"})
    assert caught.value.hint == "did you mean 'train'?"


def test_official_captions_are_brought_to_their_images(tmp_path: Path) -> None:
    make_coco_official(tmp_path)
    found = records(open_data({"source": "coco_official", "root": tmp_path, "split": "val2017"}))
    assert [(r.id, r.captions["en"]) for r in found] == [
        ("val2017/000000000002.jpg", ("of two",)),
        ("val2017/000000000001.jpg", ("first of one", "second of one")),
    ]
    assert found[1].size == (64, 48)
    assert found[1].annotation == {"image_id": 1, "sentence_ids": [30, 31]}


def test_captions_and_images_that_lack_each_other_are_faults(tmp_path: Path) -> None:
    written = make_coco_official(tmp_path)
    written["annotations"][1]["image_id"] = 9
    write_json(tmp_path / "annotations" / "captions_val2017.json", written)
    report = BadRecords(skip=True)
    source = open_data({"source": "coco_official", "root": tmp_path, "split": "val2017"}, report=report)
    assert len(source) == 1
    assert [message for _, message in report] == [
        "a caption of image 9, which is not listed",
        "an image without captions",
    ]


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("images", {}, "image 2 is there twice"),
        ("images", {"id": 3}, "the image file val2017/000000000002.jpg is there twice"),
        ("annotations", {}, "is there twice"),
    ],
)
def test_official_entries_that_are_there_twice_are_refused(
    tmp_path: Path, part: str, change: dict[str, Any], reason: str
) -> None:
    written = make_coco_official(tmp_path)
    written[part].append(written[part][0] | change)
    write_json(tmp_path / "annotations" / "captions_val2017.json", written)
    with pytest.raises(DataError, match=reason) as caught:
        open_data({"source": "coco_official", "root": tmp_path, "split": "val2017"})
    assert caught.value.where == f"captions_val2017.json:{part}[{len(written[part])}]"
    report = BadRecords(skip=True)
    source = open_data({"source": "coco_official", "root": tmp_path, "split": "val2017"}, report=report)
    assert (len(source), len(report)) == (2, 1)


def test_flickr30k_in_karpathys_splits(tmp_path: Path) -> None:
    make_flickr30k(tmp_path)
    (record,) = records(open_data({"source": "flickr30k", "root": tmp_path, "split": "test"}))
    assert record.id == "1002.jpg"
    assert record.captions["en"][4] == "Sentence 4 of 1002.jpg"
    assert record.annotation["sentence_ids"] == [10, 11, 12, 13, 14]


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    make_flickr30k_entities(tmp_path)
    (listed,) = tmp_path.rglob("train.txt")
    listed.write_text(listed.read_text().strip() + "\n" + listed.read_text())
    with pytest.raises(DataError, match="is there twice"):
        open_data({"source": "flickr30k_entities", "root": tmp_path})
    report = BadRecords(skip=True)
    assert len(open_data({"source": "flickr30k_entities", "root": tmp_path}, report=report)) == 1
    assert [where for where, _ in report] == ["train.txt:2"]


def test_phrases_are_tied_to_boxes(tmp_path: Path) -> None:
    make_flickr30k_entities(tmp_path)
    (record,) = records(open_data({"source": "flickr30k_entities", "root": tmp_path}))
    assert record.captions == {"en": ("Two men in blue shirts stand near it .", "They are outside .")}
    assert record.size == (64, 48)
    assert [box.box for box in record.boxes] == [(1, 2, 20, 40), (30, 5, 64, 48)]  # the second is cut to the image
    phrases = record.annotation["phrases"]
    for caption, inside in zip(record.captions["en"], phrases, strict=True):
        assert all(caption[p["start"] : p["end"]] == p["text"] for p in inside)
    assert [(p["text"], p["entity"], p["types"], p["boxes"]) for p in phrases[0]] == [
        ("Two men", 1, ["people"], [0, 1]),
        ("blue shirts", 2, ["clothing"], [1]),
        ("it", 0, ["notvisual"], []),
    ]
    assert phrases[1][0]["types"] == ["people", "other"]
    assert (record.annotation["scene"], record.annotation["no_box"]) == ([3], [4])
    json.dumps(record.annotation)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (ENTITIES_XML[:-20], "not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + ENTITIES_XML, "declares entities"),
        (ENTITIES_XML.replace("<width>64</width>", ""), "<size/width> is missing"),
        (ENTITIES_XML.replace("<xmax>20", "<xmax>twenty"), "not a whole number"),
        (ENTITIES_XML.replace("<xmax>20", "<xmax>1"), "no area"),
        (ENTITIES_XML.replace("<xmax>20", "<xmax>90"), "outside of the image of 64x48"),
    ],
)
def test_damaged_boxes_name_their_file(xml: str, reason: str, tmp_path: Path) -> None:
    make_flickr30k_entities(tmp_path)
    (tmp_path / "Annotations" / "77.xml").write_text(xml)
    with pytest.raises(DataError, match=reason) as caught:
        open_data({"source": "flickr30k_entities", "root": tmp_path})
    assert caught.value.where == "Annotations/77.xml"


def test_markup_of_sentences_is_whole_or_refused() -> None:
    assert parse_sentence("No phrase [here] .", "x") == ("No phrase [here] .", [])
    with pytest.raises(DataError, match="not whole"):
        parse_sentence("[/EN#1/people A man runs", "x")
