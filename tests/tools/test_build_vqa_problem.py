"""The question answering problem: answers are what the pictures show, and some pairs are kept for testing."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from build_vqa_problem import PHRASES, build, held_out_number
from mmbert.data.answers import normalise_answer
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from scenes import CONCEPTS, concept, relation
from scenes.pairs import kept_apart

PLURALS = {concept(name).plural: name for name in CONCEPTS}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "problem"
    build(folder, train=200, test=60, size=96)
    return folder


def records(problem: Path, split: str) -> list[Record]:
    source = open_data({"source": "vqa_v2", "root": problem, "split": split, "boxes": problem / "annotations"})
    return [source[i] for i in range(len(source))]


def shown(problem: Path, record: Record) -> list[dict[str, Any]]:
    facts = json.loads((problem / "scenes.json").read_text("utf-8"))
    return list(facts[str(record.annotation["image_id"])]["objects"])


def in_that_place(objects: list[dict[str, Any]], question: str) -> list[str]:
    """Names of all things that stand where a question about a place says."""
    side, phrase = next((s, p) for s, p in PHRASES.items() if question.startswith(f"What is {p} the "))
    name = question.removeprefix(f"What is {phrase} the ").rstrip("?")
    (anchor,) = (o for o in objects if o["name"] == name)
    return [o["name"] for o in objects if relation(tuple(o["box"]), tuple(anchor["box"])) == side]


@pytest.mark.parametrize("split", ["train", "val"])
def test_answers_are_what_the_pictures_show(problem: Path, split: str) -> None:
    asked = records(problem, split)
    assert len(asked) == {"train": 200, "val": 60}[split]
    for record in asked:
        objects, answer = shown(problem, record), record.annotation["answer"]
        names = [one["name"] for one in objects]
        assert [list(map(float, one["box"])) for one in objects] == [list(box.box) for box in record.boxes]
        assert {box.name for box in record.boxes} == {"object"}, "boxes come without names"
        assert record.annotation["answers"] == [answer] * 10
        assert normalise_answer(answer) == answer
        question = record.annotation["question"]
        if question.startswith("What"):
            assert in_that_place(objects, question) == [answer]
        elif question.startswith("How many "):
            name = PLURALS[question.removeprefix("How many ").removesuffix(" are there?")]
            assert str(names.count(name)) == answer
        else:
            name = question.removeprefix("Is there ").rstrip("?").split(" ", 1)[1]
            assert (name in names) is (answer == "yes")
    assert {record.annotation["answer_type"] for record in asked} == {"other", "number", "yes/no"}


def test_what_is_tested_was_never_shown_together(problem: Path) -> None:
    for record in records(problem, "train"):
        names = [one["name"] for one in shown(problem, record)]
        assert not any(kept_apart(one, other) for one, other in combinations(set(names), 2))
        assert not any(held_out_number(name, names.count(name)) for name in names)
    for record in records(problem, "val"):
        names, question = [one["name"] for one in shown(problem, record)], record.annotation["question"]
        if question.startswith("What"):
            anchor = next(n for n in names if question.endswith(f" the {n}?"))
            assert kept_apart(anchor, record.annotation["answer"])
        elif question.startswith("How many "):
            name = PLURALS[question.removeprefix("How many ").removesuffix(" are there?")]
            assert held_out_number(name, int(record.annotation["answer"]))


def test_a_seed_decides_everything(problem: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", train=20, test=4, size=96)
    again = [record.annotation for record in records(tmp_path / "again", "train")]
    assert again == [record.annotation for record in records(problem, "train")[:20]]
