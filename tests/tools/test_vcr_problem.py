"""The choice problem: its questions are true of the scenes, and what val asks for never occurs in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import build_vcr_problem as problem
from mmbert.data.sources import open_data
from scenes import RELATIONS, Composer, Scene
from scenes.pairs import held_out_relations

SIZES = {"train": 12, "val": 8, "test": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problem") / "vcr"
    problem.build(folder, SIZES, seed=3, per_scene=3, canvas=96)
    return folder


def stands(scene: Scene, one: int, anchor: int, relation: str) -> bool:
    """By the middles of the boxes, written out."""
    (x, y), (ax, ay) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (scene.objects[one].box, scene.objects[anchor].box)
    )
    sideways = abs(x - ax) > abs(y - ay)
    if relation in ("left", "right"):
        return sideways and (x < ax) == (relation == "left")
    return not sideways and (y < ay) == (relation == "above")


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_answer_and_one_rationale_are_true(split: str) -> None:
    rng = np.random.default_rng(5)
    composer, held_out = Composer(size=96), held_out_relations(np.random.default_rng(0))
    for _ in range(12):
        scene, asked = problem.draw(composer, rng, held_out, split, 3)
        names = [placed.concept.name for placed in scene.objects]
        assert len(set(names)) == len(names)
        for question in asked:
            others = [number for number in range(len(names)) if number != question.anchor]
            true = [number for number in others if stands(scene, number, question.anchor, question.relation)]
            assert question.target in true
            answers = [name in [names[n] for n in true] for name in question.names]
            assert answers == [number == question.right for number in range(4)]
            assert sum(name in names for name in question.names) == 2, "another wrong one is in the picture, too"
            assert [tag == question.target for tag in question.tags] == [n == question.reason for n in range(4)]
            assert question.anchor not in question.tags
            assert len(set(question.tags)) == len(set(question.names)) == 4


def pairs(line: dict[str, Any]) -> set[tuple[str, str]]:
    relation = next(word for word in line["question"] if word in RELATIONS)
    return {(answer[1], relation) for answer in line["answer_choices"]}


def test_held_out_pairs_are_in_val_alone(folder: Path) -> None:
    held_out = set(json.loads((folder / "problem.json").read_text())["held_out"].items())
    assert {sum(relation == one for _, relation in held_out) // 25 for one in RELATIONS} == {1}, "about a quarter each"
    lines = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()] for split in SIZES
    }
    assert {split: len(found) for split, found in lines.items()} == SIZES
    assert not any(pairs(line) & held_out for line in lines["train"])
    assert all(pairs(line) <= held_out for line in lines["val"])
    assert all("answer_label" not in line for line in lines["test"])


def test_the_files_are_vcrs(folder: Path) -> None:
    for split, size in SIZES.items():
        source = open_data({"source": "vcr", "root": folder, "split": split})
        assert len(source) == size
        record = source[0]
        assert {box.name for box in record.boxes} == {"thing"}, "nothing says what is in a box"
        assert record.size == (96, 96)
        assert all(0 <= v <= 96 for box in record.boxes for v in box.box)


def test_the_same_seed_makes_the_same_files(folder: Path, tmp_path: Path) -> None:
    problem.build(tmp_path / "again", SIZES, seed=3, per_scene=3, canvas=96)
    for path in folder.rglob("*.json*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()
