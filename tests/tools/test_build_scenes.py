"""The learning problems of composed scenes: what is held out, what captions say, and that the product reads them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import build_scenes
from mmbert.data.sources import open_data
from mmbert.vision.images import load_image
from scenes import concept
from scenes.captions import KINDS
from scenes.pairs import held_out_pairs, pairs_of

SIZES = {"train": 60, "validation": 12, "test": 12}
OPTIONS: dict[str, Any] = {"sizes": SIZES, "texts": 30, "concepts": 20, "side": 64, "share": 0.15, "seed": 3}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "out"
    build_scenes.build(out, **OPTIONS)
    return out


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def test_held_out_pairs_meet_in_every_picture_that_is_tested_and_in_none_that_is_trained_on(built: Path) -> None:
    held_out = {frozenset(pair) for pair in json.loads((built / "pairs.json").read_text())["held_out"]}
    assert len(held_out) == round(0.15 * 20 * 19 / 2)
    for row in rows(built / "scenes"):
        drawn = {thing["name"] for thing in json.loads(row["facts"])["objects"]}
        assert drawn == set(row["objects"].split(", "))
        assert bool(pairs_of(drawn) & held_out) == (row["split"] != "train")
    names = json.loads((built / "pairs.json").read_text())["names"]
    for line in (built / "text" / "train.en").read_text("utf-8").splitlines():
        assert not pairs_of(name for name in names if f" {name}" in f" {line}".replace(",", " ")) & held_out


def test_held_out_pairs_are_spread_evenly_over_the_names() -> None:
    import numpy as np

    names = [str(i) for i in range(30)]
    held_out = held_out_pairs(names, 0.2, np.random.default_rng(0))
    assert len(held_out) == 87
    per_name = [sum(name in pair for pair in held_out) for name in names]
    assert max(per_name) - min(per_name) <= 2
    assert pairs_of(["a", "b", "a", "c"]) == {frozenset(pair) for pair in combinations("abc", 2)}


def test_a_caption_names_everything_in_its_language_and_says_where_it_is_or_how_many_there_are(built: Path) -> None:
    counted = 0
    for row in rows(built / "scenes"):
        things = json.loads(row["facts"])["objects"]
        for language in ("en", "de", "fr", "cs"):
            text = row[f"caption_{language}"]
            for thing in things:
                assert concept(thing["name"]).names[language] in text
        english = row["caption_en"]
        assert english.endswith(f", {json.loads(row['facts'])['ground']} background")
        if "×" in english:
            counted += 1
            for name in {thing["name"] for thing in things}:
                many = sum(thing["name"] == name for thing in things)
                assert f"{many} × {name}" in english
            continue
        for thing in things:
            x, y = ((thing["box"][i] + thing["box"][i + 2]) / 2 for i in (0, 1))
            part = next(part for part in english.split(", ") if f" {thing['name']} " in part)
            for word, true in (("left", x < 32), ("right", x > 32), ("top", y < 32), ("bottom", y > 32)):
                assert true or word not in part.split(thing["name"])[1]
    assert 0 < counted < len(rows(built / "scenes")) / 2


def test_vague_captions_leave_one_thing_open_that_the_translation_names(built: Path) -> None:
    full = {row["file_name"]: row for row in rows(built / "scenes")}
    vague = rows(built / "vague")
    assert {row["split"] for row in vague} == set(SIZES)
    for row in vague:
        left_open = concept(row["open"])
        assert KINDS[left_open.kind] in row["caption_en"]
        assert left_open.name not in row["caption_en"].replace(KINDS[left_open.kind], "").split()
        for language in ("de", "fr"):
            assert row[f"caption_{language}"] == full[row["file_name"]][f"caption_{language}"]
        pictures = [built / folder / row["file_name"] for folder in ("vague", "scenes")]
        assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_the_product_reads_all_of_it(built: Path) -> None:
    for split, count in SIZES.items():
        source = open_data(f"{built / 'scenes'}:{split}")
        assert len(source) == count and set(source.languages) == {"en", "de", "fr", "cs"}
        image = source[0].image
        assert image is not None and load_image(image).size == (64, 64)
    text = open_data({"source": "text", "paths": {code: built / "text" / f"train.{code}" for code in ("en", "de")}})
    assert len(text) == 30
    vague = open_data(f"{built / 'vague'}:test")
    for language in ("de", "fr"):
        root = {"source": "mlt", "root": built / "mlt", "images": built / "scenes", "language": language}
        items = open_data(root | {"split": "test_2016"})
        assert 0 < len(items) <= len(vague)
        for record in (items[i] for i in range(len(items))):
            assert record.image is not None and load_image(record.image).size == (64, 64)
            assert record.annotation["word"] in record.captions["en"][0]
            assert record.annotation["translations"][0] in record.captions[language][0]


def test_the_seed_decides_everything(built: Path, tmp_path: Path) -> None:
    build_scenes.build(tmp_path / "again", **OPTIONS)
    for path in sorted(p for p in built.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(built)).read_bytes()


def test_no_caption_comes_twice(built: Path) -> None:
    captions = [row["caption_cs"] for row in rows(built / "scenes")]
    captions += (built / "text" / "train.cs").read_text("utf-8").splitlines()
    assert len(captions) == len(set(captions))
