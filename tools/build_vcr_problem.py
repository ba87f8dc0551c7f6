"""Build a choice problem in the official layout of VCR, from scenes of the starter corpus's drawings.

    python tools/build_vcr_problem.py runs/vcr-problem

Each scene has 5 or 6 different objects. They are given as boxes without their names ("thing"); words of the texts are
tied to them. A question asks for the one object that stands in some relation to a tagged one ("What is left of [2] ?"),
and the four answers name one thing each: the right one, another object of the scene, which stands elsewhere, and two
that are not in the scene. (VCR's wrong answers are mostly right ones of other images, too: Zellers et al., 2019.) The
rationales tie the same words to four objects; right is the one that the right answer names.

Every thing has one relation of its own in which no answer of the training split ever names it, right or wrong. The
split val asks for nothing but those pairs, with all four answers of them. The split test has no labels, as VCR's.

Out come ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, ``vcr1images/`` and ``problem.json``, which says what was held
out. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenes import CONCEPTS, RELATIONS, Composer, Scene
from scenes.pairs import held_out_relations

SAID = {"left": ["left", "of"], "right": ["right", "of"], "above": ["above"], "below": ["below"]}
THING = "thing"
"""What every object is called."""
OBJECTS = (5, 6)
CHOICES = 4
MOST_TRIES = 1000


@dataclass(frozen=True)
class Question:
    """What is asked about a scene.

    Args:
        anchor: number of the tagged object.
        relation: of the thing asked for, seen from the anchor.
        target: number of the thing asked for.
        names: of the four answers; those at ``right`` is the target's.
        right: number of the right answer.
        tags: objects that the four rationales name; the target is at ``reason``.
        reason: number of the right rationale.
    """

    anchor: int
    relation: str
    target: int
    names: list[str]
    right: int
    tags: list[int]
    reason: int

    def line(self, name: str, scene: Scene, number: int, labelled: bool) -> dict[str, Any]:
        """As VCR writes it."""
        movie, _, _ = name.partition("/")
        said = SAID[self.relation]
        line: dict[str, Any] = {
            "movie": movie,
            "objects": [THING] * len(scene.objects),
            "img_fn": f"{name}.png",
            "metadata_fn": f"{name}.json",
            "img_id": name,
            "annot_id": f"{name}-{number}",
            "question_number": number,
            "question": ["What", "is", *said, [self.anchor], "?"],
            "answer_choices": [["The", word, "."] for word in self.names],
            "rationale_choices": [[[tag], "is", *said, [self.anchor], "."] for tag in self.tags],
        }
        return line | {"answer_label": self.right, "rationale_label": self.reason} if labelled else line


def pool(held_out: Mapping[str, str], relation: str, split: str) -> list[str]:
    """Things that answers of a split may name in questions for a relation."""
    return [name for name in CONCEPTS if (held_out[name] == relation) == (split != "train")]


def questions(scene: Scene, held_out: Mapping[str, str], split: str, rng: np.random.Generator) -> Iterator[Question]:
    """Everything that can be asked about a scene: where exactly one object clearly stands in the relation."""
    names = [placed.concept.name for placed in scene.objects]
    for anchor in range(len(names)):
        seen = {number: scene.relation(number, anchor) for number in range(len(names)) if number != anchor}
        for relation in RELATIONS:
            allowed = pool(held_out, relation, split)
            targets = [number for number, found in seen.items() if found == relation]
            others = [n for n, found in seen.items() if found not in (relation, None) and names[n] in allowed]
            absent = [name for name in allowed if name not in names]
            if len(targets) != 1 or names[targets[0]] not in allowed or not others or len(absent) < CHOICES - 2:
                continue
            if any(_may_be(scene, number, anchor, relation) for number, found in seen.items() if found is None):
                continue
            yield _question(rng, anchor, relation, targets[0], others, absent, names)


def _question(
    rng: np.random.Generator,
    anchor: int,
    relation: str,
    target: int,
    others: Sequence[int],
    absent: Sequence[str],
    names: Sequence[str],
) -> Question:
    other = others[int(rng.integers(len(others)))]
    drawn = [absent[int(i)] for i in rng.permutation(len(absent))[: CHOICES - 2]]
    answers = _shuffled(rng, [names[target], names[other], *drawn])
    further = [n for n in range(len(names)) if n not in (anchor, target)]
    tags = _shuffled(rng, [target, *(further[int(i)] for i in rng.permutation(len(further))[: CHOICES - 1])])
    return Question(anchor, relation, target, answers, answers.index(names[target]), tags, tags.index(target))


def _shuffled(rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
    return [items[int(i)] for i in rng.permutation(len(items))]


def _may_be(scene: Scene, one: int, anchor: int, relation: str) -> bool:
    """Whether a person might say so of object ``one``, if not clearly."""
    (x, y), (ax, ay) = scene.objects[one].centre, scene.objects[anchor].centre
    return {"left": x < ax, "right": x > ax, "above": y < ay, "below": y > ay}[relation]


def draw(
    composer: Composer, rng: np.random.Generator, held_out: Mapping[str, str], split: str, most: int
) -> tuple[Scene, list[Question]]:
    """A scene with at least one question, and at most ``most`` of those that can be asked."""
    for _ in range(MOST_TRIES):
        relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
        # Outside of training things of one pool stand together, else there would be nothing to ask for.
        names = CONCEPTS if split == "train" else pool(held_out, relation, split)
        count = int(rng.integers(OBJECTS[0], OBJECTS[-1] + 1))
        scene = composer.compose(rng, [names[int(i)] for i in rng.permutation(len(names))[:count]])
        found = list(questions(scene, held_out, split, rng))
        if found:
            return scene, [found[int(i)] for i in rng.permutation(len(found))[:most]]
    raise RuntimeError("no scene with a question; another seed may do")


class Writer:
    """Writes the files of the official layout.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes = 0
        (folder / "vcr1images" / "scenes").mkdir(parents=True)

    def add(self, scene: Scene, asked: Sequence[Question], labelled: bool) -> Iterator[dict[str, Any]]:
        """Write a scene and what is in it; gives the lines about it."""
        name = f"scenes/{self.scenes:06d}"
        self.scenes += 1
        width, height = scene.image.size
        boxes = [[float(side) for side in placed.box] for placed in scene.objects]
        metadata = {
            "boxes": [[*box, 1.0] for box in boxes],
            "segms": [[[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]] for x1, y1, x2, y2 in boxes],
            "names": [THING] * len(boxes),
            "width": width,
            "height": height,
        }
        path = self.folder / "vcr1images" / name
        scene.image.save(path.with_suffix(".png"))
        path.with_suffix(".json").write_text(json.dumps(metadata), encoding="utf-8")
        for number, question in enumerate(asked):
            yield question.line(name, scene, number, labelled)


def build(folder: Path, sizes: Mapping[str, int], *, seed: int, per_scene: int, canvas: int) -> dict[str, Any]:
    """Make the problem.

    Args:
        folder: must not exist.
        sizes: questions of each split.
        seed: decides everything.
        per_scene: questions about a scene, at most.
        canvas: side of the scenes in pixels.

    Returns:
        what ``problem.json`` says.
    """
    rng = np.random.default_rng(seed)
    held_out = held_out_relations(rng)
    composer = Composer(size=canvas)
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    writer = Writer(aside)
    for split, size in sizes.items():
        lines: list[dict[str, Any]] = []
        while len(lines) < size:
            scene, asked = draw(composer, rng, held_out, split, min(per_scene, size - len(lines)))
            lines += writer.add(scene, asked, split != "test")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (aside / f"{split}.jsonl").write_text(text, encoding="utf-8")
    about = {"seed": seed, "questions": dict(sizes), "scenes": writer.scenes, "held_out": held_out}
    (aside / "problem.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    aside.rename(folder)
    return about


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    parser.add_argument("--train", type=int, default=6000, help="questions to learn from")
    parser.add_argument("--val", type=int, default=1000, help="questions about held-out pairs")
    parser.add_argument("--test", type=int, default=100, help="questions without labels")
    parser.add_argument("--per-scene", type=int, default=3, help="questions about a scene, at most")
    parser.add_argument("--canvas", type=int, default=192, help="side of the scenes in pixels")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} is there already")
    sizes = {split: getattr(given, split) for split in ("train", "val", "test")}
    about = build(given.folder, sizes, seed=given.seed, per_scene=given.per_scene, canvas=given.canvas)
    print(f"{given.folder}: {sum(sizes.values())} questions about {about['scenes']} scenes")


if __name__ == "__main__":
    main()
