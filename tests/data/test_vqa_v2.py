"""VQA v2 from files in the official layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vl_corpora import make_visual_genome, make_vqa_v2, write_json

from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.data.sources.vqa_v2 import CARD, Options, published
from mmbert.errors import DataError

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANSWERS = "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_vqa_v2(tmp_path)
    return tmp_path


def change(path: Path, change_it: Any) -> None:
    value = json.loads(path.read_text())
    change_it(value)
    write_json(path, value)


def test_a_question_comes_with_its_ten_answers(root: Path) -> None:
    source = open_data({"source": "vqa_v2", "root": root, "split": "train"})
    assert len(source) == 4
    record = source[0]
    assert record.id == "1000"
    assert record.image is not None and record.image.key == "train2014/COCO_train2014_000000000001.jpg"
    assert record.group == record.image.key
    assert record.annotation == {
        "question": "What colour is it?",
        "question_id": 1000,
        "image_id": 1,
        "answers": ["blue", *["a colour"] * 9],
        "answer": "a colour",
        "answer_type": "other",
        "question_type": "what color is",
    }


def test_train_and_val_together_and_tests_without_answers(root: Path) -> None:
    both = open_data({"source": "vqa_v2", "root": root, "split": "train+val"})
    assert [both[i].split for i in range(len(both))] == ["train"] * 4 + ["val"] * 2
    for split in ("test", "test-dev"):
        source = open_data({"source": "vqa_v2", "root": root, "split": split})
        assert set(source[0].annotation) == {"question", "question_id", "image_id"}
        assert source[0].image is not None and "test2015" in source[0].image.key


def test_visual_genome_adds_questions_about_images_of_the_split_only(root: Path, tmp_path: Path) -> None:
    make_visual_genome(tmp_path / "vg")
    options = {"source": "vqa_v2", "root": root, "visual_genome": tmp_path / "vg"}
    source = open_data(options)
    assert len(source) == 5  # image 502 is COCO's test image 4, image 503 is not of COCO
    record = source[4]
    assert record.id == "visual_genome:5010"
    assert record.image == source[0].image
    assert record.annotation["answers"] == ["A car."]
    assert record.annotation["corpus"] == "visual_genome"
    with pytest.raises(DataError, match="train and val only"):
        open_data(options, split="test")
    assert published(Options(root=root, split="val")) == CARD.counts["val"]
    assert published(Options(root=root, split="val", visual_genome=tmp_path)) == {}


@pytest.mark.parametrize(
    ("file", "change_it", "place", "reason"),
    [
        (QUESTIONS, lambda v: v["questions"][2].pop("question"), "questions[3]", "'question' is missing"),
        (QUESTIONS, lambda v: v["questions"][2].update(question=" "), "questions[3]", "'question' is empty"),
        (QUESTIONS, lambda v: v["questions"][2].update(question_id="7"), "questions[3]", "not a whole number"),
        (QUESTIONS, lambda v: v["questions"][2].update(question_id=1000), "questions[3]", "there twice"),
        (QUESTIONS, lambda v: v["questions"][2].update(image_id=1), "questions[3]", "its answers are about 2"),
        (ANSWERS, lambda v: v["annotations"][2]["answers"].pop(), "annotations[3]", "has 9 items, not 10"),
        (ANSWERS, lambda v: v["annotations"][2]["answers"][4].pop("answer"), "annotations[3]", "'answer' is missing"),
        (ANSWERS, lambda v: v["annotations"].pop(2), "questions[3]", "no usable answers"),
    ],
)
def test_faults_name_file_and_item(root: Path, file: str, change_it: Any, place: str, reason: str) -> None:
    change(root / file, change_it)
    with pytest.raises(DataError, match=reason) as caught:
        open_data({"source": "vqa_v2", "root": root})
    name = QUESTIONS if place.startswith("q") else ANSWERS
    assert caught.value.where == f"{name}:{place}"
    report = BadRecords(skip=True)
    assert len(open_data({"source": "vqa_v2", "root": root}, report=report)) == 3
    assert reason in report.found[0][1]


def test_a_question_that_is_answered_twice_keeps_the_first(root: Path) -> None:
    change(
        root / ANSWERS, lambda v: v["annotations"].append({**v["annotations"][0], "multiple_choice_answer": "other"})
    )
    with pytest.raises(DataError, match="the entry for question 1000 is there twice"):
        open_data({"source": "vqa_v2", "root": root})
    report = BadRecords(skip=True)
    source = open_data({"source": "vqa_v2", "root": root}, report=report)
    assert (len(source), len(report)) == (4, 1)
    assert source[0].annotation["answer"] != "other"


def test_answers_without_a_question_are_reported(root: Path) -> None:
    change(root / QUESTIONS, lambda v: v["questions"].pop(0))
    with pytest.raises(DataError, match="answers to question 1000, which is not listed"):
        open_data({"source": "vqa_v2", "root": root})
