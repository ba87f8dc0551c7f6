"""Build learning problems in which pictures count, from the starter corpus's drawings.

    python tools/build_scenes.py OUT

writes, in the layouts that ``mmbert`` reads:

* ``OUT/scenes``: a user's folder of pictures with captions in English, German, French and Czech (two or three objects and
  where they are, or how many of each, and the colour of the ground), splits train, validation and test;
* ``OUT/vague``: the same pictures, of those with places; ``caption_en`` names the kind of one object only ("an animal at
  the top left"), ``caption_de`` and ``caption_fr`` the thing itself. What to write, only the picture tells;
* ``OUT/mlt``: the same items as rows of Multimodal Lexical Translation: the ambiguous word is the kind;
* ``OUT/text``: line-aligned captions without pictures;
* ``OUT/pairs.json``: pairs of things that never meet in training. Every picture of the other splits has one of them.

The seed decides everything. 3,200 pictures take about half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenes import CONCEPTS, Composer, Scene
from scenes.captions import LANGUAGES, Mention, caption, captions, mentions
from scenes.pairs import Pair, held_out_pairs, pairs_of

SPLITS = {"train": 2400, "validation": 300, "test": 500}
MLT_FILES = {"train": "en{}_train.txt", "validation": "en{}_val.txt", "test": "en{}_test2016.txt"}
DEFAULTS: dict[str, Any] = {
    "sizes": SPLITS, "texts": 6000, "concepts": 60, "side": 160, "share": 0.15, "seed": 1
}  # fmt: skip
GRID = (2, 2)
COUNTED = 0.2  # share of pictures whose captions count
THREE = 0.4  # share of the others with three objects


@dataclass(frozen=True)
class Item:
    """A picture with what its captions say, and the part that the vague ones leave open (None: it counts)."""

    scene: Scene
    said: list[Mention]
    vague: int | None


class Items:
    """Draws items of one split after the other; no caption comes twice.

    Args:
        names: concepts to draw from.
        held_out: pairs for validation and test alone.
        composer: of the pictures.
        rng: decides everything.
    """

    def __init__(self, names: list[str], held_out: frozenset[Pair], composer: Composer, rng: np.random.Generator):
        self.names, self.held_out, self.composer, self.rng = names, held_out, composer, rng
        self._pairs = sorted(tuple(sorted(pair)) for pair in held_out)
        self._told: set[frozenset[str]] = set()

    def draw(self, count: int, *, unseen: bool) -> Iterator[Item]:
        """So many items; with ``unseen`` each has a held-out pair, without none has."""
        while count:
            item = self._item(unseen)
            said = frozenset(f"{m.count} {m.concept.name} {m.place}" for m in item.said) | {item.scene.ground.name}
            if said not in self._told:
                self._told.add(said)
                count -= 1
                yield item

    def _item(self, unseen: bool) -> Item:
        rng = self.rng
        counted = rng.random() < COUNTED
        wanted = self._choose(2 if counted or rng.random() >= THREE else 3, unseen)
        if counted:
            first = int(rng.integers(1, 4))
            second = int(rng.integers(max(0 if first > 1 and not unseen else 1, 3 - first), 5 - first))
            wanted = [wanted[0]] * first + [wanted[1]] * second
        scene = self.composer.compose(rng, wanted, grid=GRID)
        sides = len(wanted) == 2 and scene.relation(0, 1) is not None and rng.random() < 0.5
        said = mentions(scene, counted=counted, sides=sides)
        return Item(scene, said, None if counted else int(rng.integers(len(said))))

    def _choose(self, count: int, unseen: bool) -> list[str]:
        """Different names; with ``unseen`` two of them are a held-out pair."""
        while True:
            chosen = [self.names[i] for i in self.rng.permutation(len(self.names))[:count]]
            if unseen:
                pair = self._pairs[int(self.rng.integers(len(self._pairs)))]
                chosen = [*pair, *(name for name in chosen if name not in pair)][:count]
                chosen = [chosen[i] for i in self.rng.permutation(count)]
            if unseen or not pairs_of(chosen) & self.held_out:
                return chosen


def build(out: Path, *, sizes: dict[str, int], texts: int, concepts: int, side: int, share: float, seed: int) -> None:
    """Write everything.

    Args:
        out: a new folder.
        sizes: pictures of each split.
        texts: lines of text without pictures.
        concepts: how many, taken evenly from the table.
        side: of the pictures, in pixels.
        share: of the pairs that is held out.
        seed: decides everything.
    """
    rng = np.random.default_rng(seed)
    names = [CONCEPTS[i * len(CONCEPTS) // concepts] for i in range(concepts)]
    held_out = held_out_pairs(names, share, rng)
    items = Items(names, held_out, Composer(side), rng)
    for folder in ("scenes", "vague", "mlt", "text"):
        (out / folder).mkdir(parents=True)
    pairs = {"names": names, "held_out": sorted(sorted(pair) for pair in held_out)}
    (out / "pairs.json").write_text(json.dumps(pairs, indent=1), "utf-8")
    tables: dict[str, list[str]] = {}  # file to its lines
    for split, count in sizes.items():
        for number, item in enumerate(items.draw(count, unseen=split != "train")):
            for file, line in _picture(out, f"{split}-{number:05}.webp", split, item):
                tables.setdefault(file, []).append(line)
    for told in (captions(item.said, item.scene.ground) for item in items.draw(texts, unseen=False)):
        for code in LANGUAGES:
            tables.setdefault(f"text/train.{code}", []).append(told[code])
    for file, lines in tables.items():
        (out / file).write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _picture(out: Path, name: str, split: str, item: Item) -> Iterator[tuple[str, str]]:
    """Save a picture; give the lines that are about it, each with the file that it belongs to."""
    written = captions(item.said, item.scene.ground)
    item.scene.image.save(out / "scenes" / name, quality=90, method=2)
    row: dict[str, Any] = {"file_name": name, "split": split}
    objects = ", ".join(dict.fromkeys(o.concept.name for o in item.scene.objects))
    row["boxes"] = [list(placed.box) for placed in item.scene.objects]
    told = {f"caption_{code}": text for code, text in written.items()}
    yield "scenes/metadata.jsonl", _json(row | told | {"objects": objects, "facts": _json(item.scene.facts())})
    if item.vague is None:
        return
    left_open = item.said[item.vague].concept
    vague = caption(item.said, item.scene.ground, "en", item.vague)
    os.link(out / "scenes" / name, out / "vague" / name)
    told = {"caption_en": vague, "caption_de": written["de"], "caption_fr": written["fr"]}
    yield "vague/metadata.jsonl", _json(row | told | {"open": left_open.name})
    for code in ("de", "fr"):
        if " " not in left_open.names[code]:  # in that format, blanks stand between several right answers
            cells = (left_open.kind, left_open.names[code], vague, written[code], name)
            yield f"mlt/{MLT_FILES[split].format(code)}", " | ".join(cells)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Read the options and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    for split, count in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"pictures (default {count})")
    for name, kind, what in (
        ("texts", int, "lines of text without pictures"),
        ("concepts", int, f"kinds of things, of {len(CONCEPTS)}"),
        ("side", int, "of the pictures, in pixels"),
        ("share", float, "of the pairs of things that is held out"),
        ("seed", int, "decides everything"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=DEFAULTS[name], help=f"{what} (default {DEFAULTS[name]})")
    given = vars(parser.parse_args())
    out, sizes = given.pop("out"), {split: given.pop(split) for split in SPLITS}
    if out.exists():
        parser.error(f"{out} exists already")
    build(out, sizes=sizes, **given)
    print(f"{sum(sizes.values())} pictures in {out / 'scenes'}")


if __name__ == "__main__":
    main()
