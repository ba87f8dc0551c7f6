"""Checking a corpus: what it counts, what it finds broken, what it doubts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmbert.data.check import Broken, CheckResult, ImageSizes, LanguageCount, Repeated, check
from mmbert.errors import DataError


def picture(path: Path, seed: int, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(root: Path, *rows: dict[str, Any]) -> None:
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_sound_folder_is_counted(tmp_path: Path) -> None:
    for i, size in enumerate([(10, 20), (30, 8), (100, 50)]):
        picture(tmp_path / f"{i}.png", i, size)
    write(
        tmp_path,
        {"file_name": "0.png", "caption_en": ["a", "b"], "caption_de": "c", "split": "train"},
        {"file_name": "1.png", "caption_en": "d", "text_de": "e", "split": "train"},
        {"file_name": "2.png", "caption": "f", "split": "test"},
    )
    steps: list[tuple[int, int]] = []
    assert check(str(tmp_path), progress=lambda done, of: steps.append((done, of))) == CheckResult(
        name=str(tmp_path),
        records=3,
        images=3,
        languages={"en": LanguageCount(2, 3, 0), "de": LanguageCount(2, 1, 1), "und": LanguageCount(1, 1, 0)},
        splits={"test": 1, "train": 2},
        sizes=ImageSizes(smallest=(10, 20), median=(30, 20), largest=(100, 50)),
    )
    assert steps[-1] == (3, 3)


def test_every_fault_is_listed_and_not_only_the_first(tmp_path: Path) -> None:
    picture(tmp_path / "good.png", 0)
    whole = picture(tmp_path / "whole.jpg", 1, (64, 64)).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.png").write_text("<html>not found</html>")
    write(
        tmp_path,
        {"file_name": "good.png", "caption": "x"},
        {"file_name": "gone.png", "caption": "x"},
        {"file_name": "half.jpg", "caption": "x"},
        {"file_name": "page.png", "caption": "x"},
        {"file_name": "good.png", "caption": ""},
    )
    result = check(str(tmp_path))
    assert not result.ok
    assert [broken.where for broken in result.broken] == [
        "metadata.jsonl:2",
        "metadata.jsonl:5",
        "metadata.jsonl:3",
        "metadata.jsonl:4",
    ]
    reasons = [broken.reason for broken in result.broken]
    assert reasons[:2] == ["no image gone.png", "empty caption in column 'caption'"]
    assert reasons[2].startswith("half.jpg: damaged or cut short")
    assert reasons[3].startswith("page.png: not an image")
    assert (result.records, result.images) == (3, 1)


def test_a_folder_of_images_alone_names_the_broken_ones(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    (tmp_path / "b.png").touch()
    result = check(str(tmp_path))
    assert result.broken == [Broken("b.png", "the file is empty")]
    assert result.splits == {"(none)": 2}
    assert result.warnings == ["2 records with an image but no caption (fine for an index, not for training)"]


def test_when_no_record_can_be_used_the_faults_are_still_listed(tmp_path: Path) -> None:
    write(tmp_path, {"file_name": "a.png"}, {"file_name": "b.png"})
    result = check(str(tmp_path))
    assert result.records == 0
    assert [broken.where for broken in result.broken] == ["metadata.jsonl:1", "metadata.jsonl:2"]


def test_a_folder_that_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        check(str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        check(str(tmp_path / "gone"))


def test_one_image_in_two_splits_is_found_by_its_pixels(tmp_path: Path) -> None:
    Image.open(picture(tmp_path / "train" / "a.png", 0)).save(tmp_path / "again.bmp")
    (tmp_path / "test").mkdir()
    (tmp_path / "again.bmp").rename(tmp_path / "test" / "b.bmp")
    picture(tmp_path / "test" / "c.png", 1)
    picture(tmp_path / "test" / "d.png", 1)  # twice in one split does no harm
    result = check(str(tmp_path))
    assert result.duplicate_images == [Repeated(("test/b.bmp", "train/a.png"), ("test", "train"))]
    assert not result.ok


def test_one_file_listed_in_two_splits_is_found(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    write(
        tmp_path,
        {"file_name": "a.png", "caption": "x", "split": "train"},
        {"file_name": "a.png", "caption": "y", "split": "test"},
    )
    assert check(str(tmp_path)).duplicate_images == [Repeated(("a.png",), ("test", "train"))]


def test_images_that_differ_in_one_pixel_or_only_in_shape_are_not_duplicates(tmp_path: Path) -> None:
    for split, size in (("train", (8, 4)), ("test", (4, 8))):
        (tmp_path / split).mkdir()
        Image.new("RGB", size, "red").save(tmp_path / split / "flat.png")
        image = Image.new("RGB", (9, 9), "red")
        image.putpixel((3, 3), (255, 0, len(split)))
        image.save(tmp_path / split / "dot.png")
    assert check(str(tmp_path)).duplicate_images == []


def test_a_caption_in_two_splits_is_a_warning_within_one_language(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    write(
        tmp_path,
        {"file_name": "0.png", "caption_en": "Handy", "split": "train"},
        {"file_name": "1.png", "caption_de": "Handy", "split": "test"},
        {"file_name": "2.png", "caption_de": "Handy", "split": "train"},
    )
    result = check(str(tmp_path))
    assert result.repeated_captions == [Repeated(("Handy",), ("test", "train"))]
    assert result.warnings == ["1 caption in more than one split"]
    assert result.ok


def test_what_the_metadata_leaves_out_is_a_warning(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    picture(tmp_path / "b.png", 1)
    (tmp_path / "metadata.json").write_text("{}")
    write(tmp_path, {"file_name": "a.png", "text": "a dog"})
    warnings = " / ".join(check(str(tmp_path)).warnings)
    assert "1 record with an image but no caption" in warnings
    assert "columns named text are not captions" in warnings
    assert "1 image in no usable record, e.g. b.png" in warnings
    assert "metadata.json is not read" in warnings


@pytest.mark.parametrize("name", ["metadata.JSONL", "Metadata.csv", "metadata.TSV"])
def test_metadata_in_capitals_is_a_warning(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png", 0)
    (tmp_path / name).write_text("{}")
    warnings = check(str(tmp_path)).warnings
    assert f"{name} is not read: captions belong into metadata.jsonl, .csv or .parquet" in warnings


def test_parallel_text_has_no_images_to_check(tmp_path: Path) -> None:
    write(tmp_path, {"text_en": "one", "text_de": "eins"})
    result = check(str(tmp_path))
    assert result.ok
    assert (result.images, result.sizes, result.warnings) == (0, None, [])


def test_one_split_of_a_folder_or_a_corpus_can_be_checked(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png", 0)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.png").touch()
    result = check(f"{tmp_path}:train")
    assert result.records == 1
    assert result.ok
    assert not any("in no usable record" in warning for warning in result.warnings)
    starter = check("starter:validation")
    assert starter.ok
    assert starter.images == 200
    assert starter.sizes == ImageSizes((96, 96), (96, 96), (96, 96))
    assert starter.languages["de"].captions == 200
