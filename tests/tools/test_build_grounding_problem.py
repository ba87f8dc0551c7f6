"""The grounding problem: official files whose expressions mean one object each, and pairs that training never has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_grounding_problem import SAID, build
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from scenes import CONCEPTS, RELATIONS
from scenes.pairs import kept_apart

WORDS = {words: relation for relation, words in SAID.items()}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "problem"
    build(folder, train=30, val=5, test=20, size=128)
    return folder


def records(problem: Path, split: str) -> list[Record]:
    source = open_data({"source": "refcoco", "root": problem, "split": split})
    return [source[i] for i in range(len(source))]


def parts(text: str) -> tuple[str, str, str] | None:
    """Noun, relation and the other noun of an expression; None where it has no relation."""
    for words, relation in WORDS.items():
        before, said, behind = text.partition(f" {words} the ")
        if said:
            return before.removeprefix("the "), relation, behind
    return None


def test_official_files_with_six_to_ten_objects_without_names(problem: Path) -> None:
    about = json.loads((problem / "problem.json").read_text())
    for split in ("train", "val", "testA"):
        found = records(problem, split)
        assert len(found) == about["expressions"][split] > 0
        for record in found:
            assert 6 <= len(record.boxes) <= 10
            assert {box.name for box in record.boxes} == {"object"}
            assert record.boxes[record.annotation["target"]].box == tuple(record.annotation["box"])
            assert record.size == (128, 128)


def test_pairs_of_object_and_relation_in_the_test_never_occur_in_training(problem: Path) -> None:
    pairs: dict[str, set[Any]] = {}
    for split in ("train", "val", "testA"):
        said = [parts(record.annotation["expression"]) for record in records(problem, split)]
        assert split == "train" or None not in said
        pairs[split] = {one[:2] for one in said if one is not None}
    assert not pairs["testA"] & (pairs["train"] | pairs["val"])
    for split in ("train", "val", "testA"):
        said = [one for one in (parts(r.annotation["expression"]) for r in records(problem, split)) if one is not None]
        assert not any(
            kept_apart(noun, anchor) for noun, _, anchor in said
        )  # what the questions test is not shown here
    held_out = json.loads((problem / "problem.json").read_text())["held_out"]
    assert set(held_out) == set(CONCEPTS)
    assert all(held_out[noun] == relation for noun, relation in pairs["testA"])
    counts = [list(held_out.values()).count(relation) for relation in RELATIONS]
    assert max(counts) - min(counts) <= 1


def test_the_relation_decides_and_only_one_object_is_meant(problem: Path) -> None:
    """Seen from what the expression's box says, against the other boxes that could be meant: two of one size apart."""
    for record in records(problem, "testA"):
        said = parts(record.annotation["expression"])
        assert said is not None and said[0] != said[2]
        again = [r for r in records(problem, "testA") if r.annotation["image_id"] == record.annotation["image_id"]]
        same = {r.annotation["target"] for r in again if r.annotation["expression"] == record.annotation["expression"]}
        assert len(same) == 1


def test_the_same_seed_makes_the_same_files(problem: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", train=3, val=1, test=1, size=128)
    build(tmp_path / "more", train=3, val=1, test=1, size=128)
    for name in ("refcoco/refs(unc).p", "refcoco/instances.json", "problem.json", "train2014/scene_000001.jpg"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()
    with pytest.raises(SystemExit, match="exists already"):
        build(tmp_path / "again")
