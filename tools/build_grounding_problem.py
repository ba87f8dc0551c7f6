"""Build a grounding problem in the official layout of RefCOCO, from scenes of the starter corpus's drawings.

    python tools/build_grounding_problem.py runs/grounding-problem

Each scene has 6 to 10 objects, two or three of them of one kind and often two of another, and expressions such as "the
cat to the right of the apple": there are several cats, so that the noun alone does not say which. The objects are given
as boxes without their names. Every concept has one relation that no expression of it ever has in training ("the cat to
the right of ..."); testA holds those pairs alone, val new scenes with the pairs of training. Nothing is shown here that the
problems of questions and of choices keep for their tests, so that these may start from a model that was trained here.

Out come ``refcoco/refs(unc).p``, ``refcoco/instances.json``, ``train2014/*.jpg`` and ``problem.json``, which says what
was held out. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scenes import Composer, Scene
from scenes.pairs import draw_together, held_out_relations

SAID = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
FEWEST, MOST = 6, 10
"""Objects of a scene."""


class Expression(NamedTuple):
    """What is said of one object: its number, the noun, and the relation to an object that there is once."""

    target: int
    noun: str
    relation: str | None
    anchor: str | None

    def __str__(self) -> str:
        if self.relation is None:
            return f"the {self.noun}"
        return f"the {self.noun} {SAID[self.relation]} the {self.anchor}"


def draw_scene(composer: Composer, rng: np.random.Generator) -> Scene:
    """A scene of two or three objects of one concept, one or two of another, and others that are there once.

    Things that other problems never show together in training (``scenes.pairs``) are not together here either.
    """
    count = int(rng.integers(FEWEST, MOST + 1))
    chosen = draw_together(rng, count)
    wanted = [chosen[0]] * int(rng.integers(2, 4)) + [chosen[1]] * int(rng.integers(1, 3)) + chosen[2:]
    return composer.compose(rng, wanted[:count])


def expressions(scene: Scene) -> Iterator[Expression]:
    """Everything that names exactly one object: a noun that is there once, or a relation that decides."""
    names = [placed.concept.name for placed in scene.objects]
    for target, noun in enumerate(names):
        if names.count(noun) == 1:
            yield Expression(target, noun, None, None)
            continue
        others = [number for number, name in enumerate(names) if name == noun and number != target]
        for anchor, name in enumerate(names):
            relation = scene.relation(target, anchor)
            if names.count(name) == 1 and relation and not any(_may_be(scene, o, anchor, relation) for o in others):
                yield Expression(target, noun, relation, name)


def _may_be(scene: Scene, one: int, anchor: int, relation: str) -> bool:
    """Whether a person might say so of object ``one``, if not clearly."""
    found = scene.relation(one, anchor)
    if found is not None:
        return found == relation
    (x, y), (ax, ay) = scene.objects[one].centre, scene.objects[anchor].centre
    return {"left": x < ax, "right": x > ax, "above": y < ay, "below": y > ay}[relation]


def choose(
    scene: Scene, rng: np.random.Generator, held_out: Mapping[str, str], split: str, most: int, plain: float
) -> list[Expression]:
    """Expressions of a scene for a split, at most ``most``; of those without a relation a share of ``plain``."""
    found = list(expressions(scene))
    related = [e for e in found if e.relation and (held_out[e.noun] == e.relation) == (split == "testA")]
    alone = [e for e in found if not e.relation] if split == "train" else []
    chosen = [related[int(i)] for i in rng.permutation(len(related))[:most]]
    extra = [alone[int(i)] for i in rng.permutation(len(alone))[: int(rng.binomial(most, plain))]]
    return [*chosen, *extra]


class Writer:
    """Collects the files of the official layout.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.refs: list[dict[str, Any]] = []
        self.sentences = 0
        (folder / "train2014").mkdir(parents=True)
        (folder / "refcoco").mkdir()

    def add(self, scene: Scene, said: Sequence[Expression], split: str) -> None:
        """A scene, its objects, and what is said of them."""
        image_id = len(self.images) + 1
        name = f"scene_{image_id:06d}.jpg"
        scene.image.save(self.folder / "train2014" / name, quality=92)
        width, height = scene.image.size
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        first = len(self.annotations) + 1
        for number, placed in enumerate(scene.objects):
            x1, y1, x2, y2 = placed.box
            box = [x1, y1, x2 - x1, y2 - y1]
            self.annotations.append({"id": first + number, "image_id": image_id, "category_id": 1, "bbox": box})
        for expression in said:
            self.refs.append(self._ref(str(expression), first + expression.target, image_id, split))

    def _ref(self, text: str, ann_id: int, image_id: int, split: str) -> dict[str, Any]:
        self.sentences += 1
        sentence = {"tokens": text.split(), "raw": text, "sent": text, "sent_id": self.sentences}
        return {
            "ref_id": self.sentences,
            "ann_id": ann_id,
            "image_id": image_id,
            "category_id": 1,
            "split": split,
            "sent_ids": [self.sentences],
            "sentences": [sentence],
        }

    def finish(self, held_out: Mapping[str, str], seed: int) -> dict[str, int]:
        """Write the files; gives the number of expressions by split."""
        instances = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": 1, "name": "object"}],  # what they are is to be seen
        }
        (self.folder / "refcoco" / "instances.json").write_text(json.dumps(instances))
        (self.folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(self.refs, protocol=2))
        counts = {split: sum(ref["split"] == split for ref in self.refs) for split in ("train", "val", "testA")}
        about = {"seed": seed, "expressions": counts, "images": len(self.images), "held_out": dict(held_out)}
        (self.folder / "problem.json").write_text(json.dumps(about, indent=1))
        return counts


def build(
    folder: Path, *, train: int = 1500, val: int = 100, test: int = 300, per_scene: int = 4, plain: float = 0.25,
    size: int = 256, seed: int = 1,
) -> dict[str, int]:  # fmt: skip
    """Write the problem.

    Args:
        folder: must not exist.
        train, val, test: scenes of each split.
        per_scene: expressions with a relation for each scene, at most.
        plain: expressions without one ("the apple") in training, as a share of ``per_scene``.
        size: side of a picture in pixels.
        seed: decides everything.

    Returns:
        number of expressions by split.
    """
    if folder.exists():
        raise SystemExit(f"{folder} exists already: remove it, or name another folder")
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    rng, composer, writer = np.random.default_rng(seed), Composer(size=size), Writer(aside)
    held_out = held_out_relations(rng)
    for split, scenes in (("train", train), ("val", val), ("testA", test)):
        left = scenes
        while left:
            scene = draw_scene(composer, rng)
            said = choose(scene, rng, held_out, split, per_scene, plain)
            if said:
                writer.add(scene, said, split)
                left -= 1
    counts = writer.finish(held_out, seed)
    aside.rename(folder)
    return counts


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("train", 1500), ("val", 100), ("test", 300), ("per-scene", 4), ("size", 256), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    options = {name: value for name, value in vars(given).items() if name != "folder"}
    print(json.dumps(build(given.folder, **options)))


if __name__ == "__main__":
    main()
