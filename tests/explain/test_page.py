"""Pictures of attention: what is on the page, where the PNG is bright, and the command."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
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
    raw = np.full((2, 2, 10, 10), 0.05)  # [CLS], two words, [SEP], five regions, [END]
    raw[:, :, 1, 5], raw[:, :, 1, 9] = 0.5, 0.1
    tokens = ("[CLS]", "<b>", "كلب", "[SEP]")
    return AttentionMaps("<b> كلب", ("<b>", "كلب"), ((0, 3), (4, 7)), boxes, weights, 0.875, tokens, raw)


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
    alone = Page(explain_page(replace(maps, raw=None), picture))  # maps of someone who has not kept all
    assert "Head view" not in [text for _, text in alone.all("h2")]
    with pytest.raises(UsageError, match="no layer 7"):
        explain_page(maps, picture, layer=7)


def test_the_page_brings_the_attention_of_all_positions(maps: AttentionMaps, picture: Image.Image) -> None:
    assert maps.raw is not None
    page = explain_page(maps, picture, head=1)
    parsed = Page(page)
    assert {"Head view", "Model view"} <= {text for _, text in parsed.all("h2")}
    (data,) = [text for attrs, text in parsed.all("script") if attrs.get("type") == "application/json"]
    assert "<b>" not in data  # a caption cannot end the script
    brought = json.loads(data)
    assert brought["names"] == [
        "[CLS]", "<b>", "كلب", "[SEP]", "whole image", "region 1", "region 2", "region 3", "region 4", "[END]",
    ]  # fmt: skip
    assert (brought["tokens"], brought["layer"], brought["head"]) == (4, None, 1)
    numbers = np.frombuffer(base64.b64decode(brought["weights"]), dtype="<u2").reshape(maps.raw.shape)
    assert numbers / 65535 == pytest.approx(maps.raw, abs=1e-5)


def test_every_picture_of_the_page_as_png(maps: AttentionMaps, picture: Image.Image, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mmbert.explain import pictures

    files, missing = pictures.write_attention_pictures(tmp_path / "pictures", maps, picture, layer=0)
    assert missing == ""
    assert [path.name for path in files] == [
        "words.png", "regions.png", "heads.png", "head-view.png", "model-view.png",
    ]  # fmt: skip
    words, regions, heads, view, models = (Image.open(path).convert("RGB") for path in files)
    left = pictures.PAD + pictures.TILE + pictures.PAD  # the first word's, whose image is as wide and half as high
    spots = [(left + pictures.TILE * x, pictures.PAD + pictures.TILE * y) for x, y in ((0.2, 0.4), (0.8, 0.6))]
    bright, dark = (words.getpixel((round(160 * x), round(160 * y))) for x, y in spots)
    assert bright[0] > 180 > 2 * dark[0]
    assert regions.width > 300
    assert min(drawn.getextrema()[0][0] for drawn in (heads, view, models)) < 150  # something is drawn
    with pytest.raises(UsageError, match="no head 5"):
        pictures.write_attention_pictures(tmp_path / "other", maps, picture, head=5)
    assert not (tmp_path / "other").exists()


def test_lines_are_the_strongest_of_each_head(maps: AttentionMaps) -> None:
    pytest.importorskip("matplotlib")
    from mmbert.explain import pictures
    from mmbert.explain.figures import letters

    assert maps.raw is not None
    with letters(maps.positions):
        views = pictures.head_view_figure(maps, maps.raw, 0, 1).axes[0]
        models = pictures.model_view_figure(maps.raw).axes[0]
    assert [text.get_text() for text in views.texts[::2]] == [text.get_text() for text in views.texts[1::2]]
    (lines,) = views.collections
    strength, (start, end) = lines.get_colors()[0][3], lines.get_segments()[0]
    assert strength == pytest.approx(0.5)
    assert (list(start), list(end)) == ([0, 1], [1, 5])
    assert len(lines.get_segments()) == 100
    assert len(models.collections) == 4
    start, end = models.collections[3].get_segments()[0]
    assert list(start) == pytest.approx([pictures.STEP, pictures.STEP + 0.15])
    assert list(end) == pytest.approx([pictures.STEP + 1, pictures.STEP + 0.55])


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
    monkeypatch.setattr(explain_command, "load_model", lambda name, device=None, int8=False: SimpleNamespace())
    picture.save(tmp_path / "dog.png")
    asked = ["explain", str(tmp_path / "dog.png"), "x", "--html", str(tmp_path / "a.html")]
    assert run([*asked, "--png", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr()
    assert "87.5 %" in said.out
    assert "0-50 %, 0-50 %" in said.out
    with Image.open(tmp_path / "a.png") as written:
        assert written.format == "PNG"
    assert not list(tmp_path.glob("*.part"))
    assert run(["explain", str(tmp_path / "dog.png"), "x", "--png", str(tmp_path / "pictures")]) == 0
    assert f"picture: {tmp_path / 'pictures' / 'model-view.png'}" in capsys.readouterr().err
    assert run(["explain", str(tmp_path / "dog.png"), "x", "--png", str(tmp_path / "no" / "pictures")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert run(["explain", str(tmp_path / "dog.png"), "x", "--png", str(tmp_path / "a.svg")]) == 2
    assert "pictures are PNG, not .svg" in capsys.readouterr().err
    assert run([*asked, "--json", "--layer", "1", "--head", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [word["region"] for word in found["words"]] == [2, 4]
    assert run([*asked, "--layer", "9"]) == 2
    assert "there is no layer 9" in capsys.readouterr().err
    assert run(["explain", str(tmp_path / "none.png"), "x"]) == 2
