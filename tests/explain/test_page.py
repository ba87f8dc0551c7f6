"""Pictures of attention: what is on the page, where the PNG is bright, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pages import Page, outside_references
from PIL import Image

import mmbert.explain.attention as attention
from mmbert.cli import explain as explain_command
from mmbert.cli.main import run
from mmbert.errors import UsageError
from mmbert.explain.attention import AttentionMaps
from mmbert.explain.page import explain_page, explain_picture, strengths


@pytest.fixture
def maps() -> AttentionMaps:
    """Two words and four quarters; the first word looks at the top left, the second at the bottom right."""
    boxes = np.array([(0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)])
    weights = np.full((2, 2, 7, 7), 0.1)
    weights[:, :, 0, 3], weights[:, :, 1, 6] = 0.5, 0.4
    weights[1, 0, 0, 3], weights[1, 0, 0, 4] = 0.1, 0.6  # one head looks elsewhere
    return AttentionMaps("<b> كلب", ("<b>", "كلب"), ((0, 3), (4, 7)), boxes, weights, 0.875)


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (80, 40), (30, 60, 200))


def test_strengths_leave_the_whole_image_out(maps: AttentionMaps) -> None:
    assert strengths(maps.word_to_region(0)[0]) == pytest.approx([1, 0, 0, 0])
    assert strengths(maps.word_to_region(1, 0)[0]) == pytest.approx([0, 1, 0, 0])
    assert strengths(np.full(5, 0.2)) == pytest.approx([0, 0, 0, 0])


def test_the_page_shows_words_regions_and_heads(maps: AttentionMaps, picture: Image.Image) -> None:
    page = explain_page(maps, picture, layer=0, facts=[("Image", "<i>")])
    assert outside_references(page) == []
    parsed = Page(page)
    assert [text for attrs, text in parsed.all("b") if attrs.get("dir")] == ["<b>", "كلب"]
    lit = [attrs for attrs, _ in parsed.all("rect", "hot") if attrs["fill-opacity"] == "0.800" and "." in attrs["x"]]
    assert [(attrs["x"], attrs["y"]) for attrs in lit] == [("0.0000", "0.0000"), ("0.5000", "0.5000")]
    names = [text for _, text in parsed.all("p", "muted")]
    assert [name for name in names if name.startswith("layer")] == [
        f"layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1)
    ]
    assert "87.5 %" in page
    with pytest.raises(UsageError, match="no layer 7"):
        explain_page(maps, picture, layer=7)


def test_the_png_is_bright_where_the_word_looks(maps: AttentionMaps, picture: Image.Image) -> None:
    sheet = explain_picture(maps, picture)
    assert sheet.size == (3 * 232 + 8, 224 + 44)
    tile = 8 + 232  # the first word's
    bright, dark = sheet.getpixel((tile + 30, 8 + 70)), sheet.getpixel((tile + 200, 8 + 150))
    assert bright[0] > 180
    assert bright[0] > 2 * dark[0]
    assert bright[2] < bright[0]
    with pytest.raises(UsageError, match="not a font"):
        explain_picture(maps, picture, font=Path(__file__))


def test_the_command(
    maps: AttentionMaps, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(attention, "attention_maps", lambda model, image, caption, boxes: maps)
    monkeypatch.setattr(explain_command, "load_model", lambda name, device=None: SimpleNamespace())
    picture.save(tmp_path / "dog.png")
    asked = ["explain", str(tmp_path / "dog.png"), "x", "--html", str(tmp_path / "a.html")]
    assert run([*asked, "--png", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr()
    assert "87.5 %" in said.out
    assert "0-50 %, 0-50 %" in said.out
    with Image.open(tmp_path / "a.png") as written:
        assert written.format == "PNG"
    assert not list(tmp_path.glob("*.part"))
    assert run([*asked, "--json", "--layer", "1", "--head", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [word["region"] for word in found["words"]] == [2, 4]
    assert run([*asked, "--layer", "9"]) == 2
    assert "there is no layer 9" in capsys.readouterr().err
    assert run(["explain", str(tmp_path / "none.png"), "x"]) == 2
