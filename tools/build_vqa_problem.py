"""Build a learning problem of visual question answering, in the layout of the official VQA v2 files.

Scenes of a few drawings each are asked about: "What is left of the dog?", "How many cats are there?", "Is there a
bell?". No answer can be told from the question alone. The objects' boxes come without their names, as COCO's
``instances_*.json`` with a single category. ``train2014`` is to be trained on, ``val2014`` to be measured: there every
question about a place is about two things that no training picture shows together, and every number is one that no
training picture shows of that thing.

    python tools/build_vqa_problem.py problems/vqa

What the pictures show is also written, for whoever wants to check, to ``scenes.json``, which no model reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from scenes import CONCEPTS, Composer, Scene, concept
from scenes.pairs import draw_together, kept_apart, share_of

PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
MOST = 4
"""Of one thing in a picture."""
HELD_OUT = 0.3
"""Share of the numbers of each thing that training never shows (of pairs of things: ``scenes.pairs``)."""
KINDS = ("place", "place", "place", "number", "presence")
"""Kinds of questions, as often as a picture is drawn for them."""
ASKED = {"place": 6, "presence": 4, "number": 2}
"""Questions of each kind about one training picture, at most: pictures cost more than questions do."""


@dataclass(frozen=True)
class Asked:
    """One question about a scene."""

    question: str
    answer: str
    answer_type: str
    question_type: str
    about: tuple[str, ...]


@dataclass
class Split:
    """What the files of a split hold."""

    year: str
    questions: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)


def held_out_number(name: str, number: int) -> bool:
    """Whether no training picture shows so many of a thing (0 and 1 are always shown)."""
    return number > 1 and share_of("number", name, str(number)) < HELD_OUT


def draw_things(rng: np.random.Generator, count: int, new: bool) -> list[str] | None:
    """``count`` things, the first two of a held-out pair if ``new``; else none of a held-out pair.

    Returns:
        None where chance found none that fit.
    """
    if not new:
        return draw_together(rng, count)
    first, *others = (CONCEPTS[i] for i in rng.permutation(len(CONCEPTS)))
    while others and not kept_apart(first, others[0]):
        del others[0]
    return [first, *others[: count - 1]] if len(others) >= count - 1 else None


def draw_scene(rng: np.random.Generator, composer: Composer, kind: str, new: bool) -> Scene:
    """A picture that a question of this kind can be asked about."""
    while True:
        things = draw_things(rng, int(rng.integers(2, 4)) if kind == "number" else int(rng.integers(3, 5)), new)
        if things is None:
            continue
        if kind == "number":
            number = int(rng.integers(2, MOST + 1))
            if held_out_number(things[0], number) is not new:
                continue
            things = [things[0]] * number + things[1:]
        return composer.compose(rng, things)


def place_questions(scene: Scene) -> Iterator[Asked]:
    """Questions of which the only thing in that place, seen from another, is the answer."""
    names = [placed.concept.name for placed in scene.objects]
    for anchor, name in enumerate(names):
        if names.count(name) > 1:
            continue
        for relation, phrase in PHRASES.items():
            there = [other for other in range(len(names)) if scene.relation(other, anchor) == relation]
            if len(there) == 1 and names.count(names[there[0]]) == 1:
                pair = (names[there[0]], name)
                yield Asked(f"What is {phrase} the {name}?", pair[0], "other", "what is", pair)


def questions(scene: Scene, kind: str, rng: np.random.Generator, new: bool, limit: int) -> list[Asked]:
    """At most ``limit`` questions of a kind; of a new picture only such as training never saw."""
    names = [placed.concept.name for placed in scene.objects]
    if kind == "place":
        found = [asked for asked in place_questions(scene) if not new or kept_apart(*asked.about)]
        return [found[i] for i in rng.permutation(len(found))[:limit]]
    if kind == "number":
        asked = [names[0], *(name for name in names[-1:] if not new)]  # the first is there several times, the last once
        return [
            Asked(f"How many {concept(name).plural} are there?", str(names.count(name)), "number", "how many", (name,))
            for name in asked
        ]
    there = list(dict.fromkeys(names[i] for i in rng.permutation(len(names))))
    absent = [name for name in (CONCEPTS[i] for i in rng.permutation(len(CONCEPTS))) if name not in names]
    each = max(1, limit // 2)  # as many that are right as that are wrong
    pairs = [*((name, "yes") for name in there[:each]), *((name, "no") for name in absent[: min(each, len(there))])]
    return [
        Asked(f"Is there {concept(name).article} {name}?", answer, "yes/no", "is there", (name,))
        for name, answer in [pairs[i] for i in rng.permutation(len(pairs))][:limit]
    ]


def build_split(
    split: Split, folder: Path, composer: Composer, rng: np.random.Generator, *, wanted: int, new: bool, first: int
) -> Split:
    """Draw pictures until ``wanted`` questions are asked."""
    (folder / split.year).mkdir(parents=True, exist_ok=True)
    image_id = first
    while len(split.questions) < wanted:
        kind = KINDS[int(rng.integers(len(KINDS)))]
        scene = draw_scene(rng, composer, kind, new)
        if new:
            found = questions(scene, kind, rng, new, 1)
        else:
            found = [asked for each, most in ASKED.items() for asked in questions(scene, each, rng, new, most)]
        if not found:
            continue
        scene.image.save(folder / split.year / f"COCO_{split.year}_{image_id:012d}.jpg", quality=95, subsampling=0)
        _add(split, scene, found[: wanted - len(split.questions)], image_id, composer.size)
        image_id += 1
    return split


def _add(split: Split, scene: Scene, found: Sequence[Asked], image_id: int, size: int) -> None:
    split.images.append(
        {"id": image_id, "file_name": f"COCO_{split.year}_{image_id:012d}.jpg", "width": size, "height": size}
    )
    split.facts[image_id] = scene.facts()
    for box in scene.region_boxes():
        x1, y1, x2, y2 = box.box
        number = len(split.objects) + 1 + 10_000_000 * (split.year == "val2014")
        split.objects.append(
            {"id": number, "image_id": image_id, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        )
    for number, asked in enumerate(found):
        question_id = 1000 * image_id + number
        split.questions.append({"image_id": image_id, "question": asked.question, "question_id": question_id})
        split.annotations.append(
            {
                "question_id": question_id,
                "image_id": image_id,
                "question_type": asked.question_type,
                "answer_type": asked.answer_type,
                "multiple_choice_answer": asked.answer,
                "answers": [
                    {"answer": asked.answer, "answer_confidence": "yes", "answer_id": person} for person in range(1, 11)
                ],
            }
        )


def write(split: Split, folder: Path) -> None:
    """The official files of a split, and COCO's of its objects."""
    about = {"info": {"description": "composed drawings", "version": "1"}, "license": {}, "data_subtype": split.year}
    _json(folder / f"v2_OpenEnded_mscoco_{split.year}_questions.json", about | {"questions": split.questions})
    _json(folder / f"v2_mscoco_{split.year}_annotations.json", about | {"annotations": split.annotations})
    objects = {"images": split.images, "categories": [{"id": 1, "name": "object"}], "annotations": split.objects}
    _json(folder / "annotations" / f"instances_{split.year}.json", objects)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def build(folder: Path, *, train: int = 36_000, test: int = 1000, size: int = 160, seed: int = 1) -> None:
    """Write the whole problem.

    Args:
        folder: new folder for it.
        train, test: questions of each split.
        size: side of the pictures in pixels.
        seed: decides everything.
    """
    composer = Composer(size=size)
    facts: dict[int, dict[str, Any]] = {}
    for number, (year, wanted, new) in enumerate((("train2014", train, False), ("val2014", test, True))):
        rng = np.random.default_rng([seed, number])
        split = build_split(Split(year), folder, composer, rng, wanted=wanted, new=new, first=1 + 500_000 * number)
        write(split, folder)
        facts |= split.facts
    _json(folder / "scenes.json", facts)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--train", type=int, default=36_000, help="questions to train on")
    parser.add_argument("--test", type=int, default=1000, help="questions to measure on")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists already")
    build(given.out, train=given.train, test=given.test, seed=given.seed)


if __name__ == "__main__":
    main()
