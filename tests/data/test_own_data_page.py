"""docs/own-data.md: its examples of folders are read as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from mmbert.data.sources import open_data

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"


def example(kind: str, number: int = 0) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[number]


@pytest.mark.parametrize(("kind", "name"), [("json", "metadata.jsonl"), ("csv", "metadata.csv")])
def test_the_examples_with_images_are_valid(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "2019").mkdir()
    for image in ("dog.jpg", "2019/market.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / image)
    (tmp_path / name).write_text(example(kind), encoding="utf-8")
    source = open_data(str(tmp_path))
    dog, market = source[0], source[1]
    assert dog.captions["en"][0].startswith("a dog")
    assert market.captions["fr"] == ("un marché", "des étals de fruits")
    assert market.extra == {"year": 2019}


def test_the_example_with_boxes_is_valid(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "dog.jpg")
    (tmp_path / "metadata.jsonl").write_text(example("json", 1), encoding="utf-8")
    assert [box.name for box in open_data(str(tmp_path))[0].boxes] == ["", "ball"]


def test_the_example_of_parallel_text_is_valid(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(example("json", 2), encoding="utf-8")
    source = open_data(str(tmp_path))
    assert source.languages == ("en", "de", "sw")
    assert source[0].image is None
