"""VCR from files in the official layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vl_corpora import make_vcr, vcr_line, vcr_metadata, write_json

from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_vcr(tmp_path)
    return tmp_path


def test_texts_boxes_and_outlines(root: Path) -> None:
    source = open_data({"source": "vcr", "root": root, "split": "train"})
    assert [source[i].id for i in range(len(source))] == ["train-0", "train-1"]
    record = source[1]
    assert record.annotation["question"] == ["Why", "do", [0, 2], "look", "at", [1], "?"]
    assert [len(record.annotation[key]) for key in ("answer_choices", "rationale_choices")] == [4, 4]
    assert (record.annotation["answer_label"], record.annotation["rationale_label"]) == (2, 0)
    assert record.annotation["annot_id"] == "train-1"
    assert [box.name for box in record.boxes] == ["person", "dog", "person"]
    assert record.boxes[0].box == (1.5, 2, 20, 40)
    assert record.boxes[0].score == 0.98
    assert record.boxes[0].polygons == ((2, 3, 19, 3, 10, 39),)
    assert [len(box.polygons) for box in record.boxes] == [1, 0, 2]
    assert record.size == (64, 48)
    assert record.image is not None and record.image.key == "movie_A/train@1.jpg"
    assert record.origin == "train.jsonl:2"


def test_the_test_split_has_no_labels_and_splits_can_be_joined(root: Path) -> None:
    source = open_data({"source": "vcr", "root": root, "split": "val+test"})
    assert [source[i].split for i in range(2)] == ["val", "test"]
    assert "answer_label" in source[0].annotation
    assert "answer_label" not in source[1].annotation
    assert len(source[1].annotation["answer_choices"]) == 4


def changed(**entries: Any) -> dict[str, Any]:
    return vcr_line(0, "train", image="train@1") | entries


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (changed(answer_label=4), "'answer_label' is 4: out of range"),
        (changed(rationale_label=-1), "'rationale_label' is -1: out of range"),
        (changed(answer_label=True), "'answer_label' holds true/false"),
        (changed(answer_choices=[["a"]] * 3), "'answer_choices' has 3 items, not 4"),
        (changed(question=["Is", [3], "?"]), "'question' names object 3; there are 3"),
        (changed(question=["Is", [], "?"]), "neither a word nor a list of objects"),
        (changed(question=[]), "a list of tokens belongs"),
        (changed(objects=["person"] * 2), "2 objects, but movie_A/train@1.json has others"),
        (changed(objects=["person"] * 3), "movie_A/train@1.json has others"),
        (changed(img_fn="movie_A/gone.jpg"), "no image movie_A/gone.jpg"),
        (changed(metadata_fn="../../x.json"), "outside of the folder"),
        (vcr_line(0, "test", image="train@1"), "'answer_label' is missing"),
    ],
)
def test_a_damaged_question_names_its_line(root: Path, line: dict[str, Any], reason: str) -> None:
    whole = vcr_line(1, "train", image="train@1")
    (root / "train.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(whole) + "\n")
    with pytest.raises(DataError) as caught:
        open_data({"source": "vcr", "root": root})
    assert reason in caught.value.message
    assert caught.value.where == "train.jsonl:1"
    report = BadRecords(skip=True)
    source = open_data({"source": "vcr", "root": root}, report=report)
    assert [source[i].id for i in range(len(source))] == ["train-1"]
    assert len(report) == 1


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"boxes": [[1, 2, 90, 40, 1], *vcr_metadata()["boxes"][1:]]}, "outside of the image of 64x48"),
        ({"boxes": [[1, 2, 3], *vcr_metadata()["boxes"][1:]]}, "3 numbers"),
        ({"boxes": vcr_metadata()["boxes"][1:]}, "'boxes' has 2 items, not 3"),
        ({"segms": [[[[1, 2, 3]]], [], []]}, "not x and y"),
        ({"segms": [7, [], []]}, "not lists of points"),
        ({"width": None}, "'width' holds nothing"),
    ],
)
def test_damaged_boxes_name_their_file(root: Path, entries: dict[str, Any], reason: str) -> None:
    write_json(root / "vcr1images" / "movie_A" / "train@1.json", vcr_metadata() | entries)
    with pytest.raises(DataError) as caught:
        open_data({"source": "vcr", "root": root})
    assert reason in caught.value.message
    assert (caught.value.where or "").startswith("movie_A/train@1.json")
    late = open_data({"source": "vcr", "root": root, "check_boxes": False})
    with pytest.raises(DataError):
        _ = late[0]


def test_a_line_that_is_no_json_and_a_number_twice(root: Path) -> None:
    with (root / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps(vcr_line(0, "train", image="train@1")) + '\n{"annot_id": ')
    report = BadRecords(skip=True)
    assert len(open_data({"source": "vcr", "root": root}, report=report)) == 2
    assert [where for where, _ in report] == ["train.jsonl:4", "train.jsonl:5"]
    assert ["twice" in report.found[0][1], "not valid JSON" in report.found[1][1]] == [True, True]
