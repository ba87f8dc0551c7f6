"""VL-BERT's and MM-BERT's annotation files as records."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stores import write_zip

from mmbert.data.records import BadRecords
from mmbert.data.sources import open_data
from mmbert.errors import DataError, ImageError
from mmbert.vision.images import load_image

LEGACY = Path(__file__).parents[2].parent / "shared" / "data" / "legacy"


def write(folder: Path, *rows: dict[str, Any] | str) -> str:
    path = folder / "train.json"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return str(path)


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


def test_captions_come_by_language_and_tokens_are_joined(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"image": "i.zip@/1.png", "frcnn": "f.zip@/1.json", "caption_en": "a dog", "caption_de": "ein Hund"},
        {"image": "i.zip@/2.png", "frcnn": "f.zip@/02.json", "caption": ["two", "cats", "sleep"]},
        {"image": "i.zip@/1.png", "frcnn": "f.zip@/1.json", "caption_en": ["a dog runs", "a brown dog"]},
    )
    source = open_data(path, language="en")
    first, second, third = (source[i] for i in range(3))
    assert first.captions == {"en": ("a dog",), "de": ("ein Hund",)}
    assert (first.image.key, first.regions, first.origin) == ("1", "1", f"{path}:1")
    assert second.captions == {"en": ("two cats sleep",)} and second.regions == "02"
    assert third.captions == {"en": ("a dog runs", "a brown dog")}
    assert first.group == third.group != second.group and first.id != third.id


def test_words_of_lexical_translation_are_annotations(tmp_path: Path) -> None:
    row = {"image": "i.zip@/1.png", "caption_en": "a bat", "word_en": "bat", "word_de": ["Fledermaus", "Schläger"]}
    source = open_data(write(tmp_path, row))
    assert source[0].annotation == {"words": {"en": ["bat"], "de": ["Fledermaus", "Schläger"]}}


def test_images_are_read_from_the_archive_or_from_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": "i.zip@/a/1.png", "caption_en": "x"}, {"image": "2.png", "caption_en": "x"})
    write_zip(tmp_path / "i.zip", {})
    import zipfile

    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("a/1.png", png("red"))
    (tmp_path / "2.png").write_bytes(png("lime"))
    source = open_data(path)
    assert load_image(source[0].image).getpixel((0, 0)) == (255, 0, 0)
    assert load_image(source[1].image).getpixel((0, 0)) == (0, 255, 0)
    (tmp_path / "i" / "a").mkdir(parents=True)
    (tmp_path / "i" / "a" / "1.png").write_bytes(png("blue"))
    unpacked = open_data({"source": "legacy", "path": path, "zipped": False})
    assert load_image(unpacked[0].image).getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / "i.zip").unlink()
    assert load_image(open_data(path)[0].image).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(ImageError, match="no such archive"):
        load_image(source[0].image)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"image": 3, "caption": "x"}, "image is not a path"),
        ({"image": "i.zip@/../../x.png", "caption": "x"}, "leads out of its folder"),
        ({"image": "/etc/passwd", "caption": "x"}, "leads out of its folder"),
        ({"image": "1.png", "caption": ""}, "neither a text nor a list"),
        ({"image": "1.png", "caption_en": [1]}, "neither a text nor a list"),
        ({"image": "1.png", "caption_not a language": "x"}, "no such language"),
        ({"image": "1.png", "word_en": 3}, "neither a word nor a list"),
        ({"other": 1}, "neither captions nor an image"),
    ],
)
def test_bad_lines_are_named_and_skipped_on_request(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path, {"image": "0.png", "caption": "fine"}, row)
    with pytest.raises(DataError, match=message) as caught:
        open_data(path)
    assert caught.value.where == f"{path}:2"
    bad = BadRecords(skip=True)
    assert len(open_data(path, report=bad)) == 1
    assert [where for where, _ in bad] == [f"{path}:2"]


@pytest.mark.skipif(not LEGACY.is_dir(), reason="../shared/data/legacy is not here")
def test_the_published_fixture_is_read() -> None:
    source = open_data(str(LEGACY / "multi30k_val_40.json"))
    assert len(source) == 40 and source.languages == ("en", "de")
    assert source[0].captions["de"] == ("Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen",)
    assert source[0].regions == "1018148011"
    assert load_image(source[0].image).size == (160, 120)
