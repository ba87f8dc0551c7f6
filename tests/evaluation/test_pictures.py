"""Pictures of evaluations as PNG: frames have the colour of the truth, letters their fonts, files their names."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from colours import ColourModel, save_folder
from PIL import Image, ImageColor

pytest.importorskip("matplotlib")

from mmbert.cli import _matrix, evaluate
from mmbert.cli.main import run
from mmbert.data.records import Record
from mmbert.errors import UsageError
from mmbert.evaluation import pictures
from mmbert.evaluation.embedding_map import EmbeddingMap, Placed
from mmbert.evaluation.pictures import (
    PAD,
    TILE,
    answers_figure,
    curves_figure,
    described_figure,
    heat_figure,
    map_figure,
    write_gallery_pictures,
    write_run_pictures,
)
from mmbert.evaluation.report import as_described, as_shown
from mmbert.evaluation.retrieval import Retrieval
from mmbert.evaluation.run_report import Curve, run_report
from mmbert.explain.figures import DPI, LINE, RIGHT, WRONG, Sheet, letters, save_figure, shortened

CURVES = [Curve("loss", (1, 2, 4), (4.0, 3.0, 1.0)), Curve("eval_R@1", (2, 5), (0.5, 0.75))]


def near(picture: Image.Image, x: float, y: float, colour: str) -> bool:
    """Whether a pixel, by its place in inches, has this colour."""
    found = picture.convert("RGB").getpixel((round(x * DPI), round(y * DPI)))
    return max(abs(a - b) for a, b in zip(found, ImageColor.getrgb(colour), strict=True)) < 40


def test_right_images_are_framed_green_and_wrong_ones_red(
    model: ColourModel, shades: list[Record], tmp_path: Path
) -> None:
    retrieval = Retrieval(model, shades)
    answers = as_shown(retrieval.gallery, [retrieval.answer(row) for row in (0, 12)])  # Arabic, German
    with letters([]):
        save_figure(tmp_path / "a.png", answers_figure(answers))
    with Image.open(tmp_path / "a.png") as drawn:
        for number, one in enumerate(answers):
            middle = PAD + number * (TILE + PAD + 3 * pictures.LINE_HEIGHT) + 2 * pictures.LINE_HEIGHT + TILE / 2
            for place, tile in enumerate(one["tiles"]):
                left = PAD + place * (TILE + PAD)
                assert near(drawn, left, middle, RIGHT if tile["right"] else WRONG)
                assert near(
                    drawn, left + TILE / 2, middle, "#{:02x}{:02x}{:02x}".format(*tile["picture"].getpixel((5, 5)))
                )
    assert {tile["right"] for one in answers for tile in one["tiles"]} == {True, False}


def test_what_images_find_is_marked_and_glossed(model: ColourModel, records: list[Record]) -> None:
    retrieval = Retrieval(model, records)
    asked = [retrieval.describe(0, "de"), retrieval.describe(1, "en")]
    assert [one.rank for one in asked] == [1, 1]
    assert [len(one.said) for one in asked] == [5, 5]
    with letters([]):
        figure = described_figure(as_described(retrieval.gallery, asked))
    drawn = [(text.get_text(), text.get_color()) for text in figure.axes[0].texts]
    assert ("rot", RIGHT) in drawn
    assert ("green", RIGHT) in drawn
    wrong = {said.text for one in asked for said in one.said if not said.right}
    assert len(wrong) == 8
    assert {text for text, colour in drawn if colour == WRONG} == {"✗", *wrong}
    glosses = [said.gloss for said in asked[0].said]
    assert set(glosses) <= {text for text, _ in drawn}
    assert all(said.gloss is None for said in asked[1].said)


def test_heat_maps_show_the_cells(tmp_path: Path) -> None:
    cells = [[None, 0.25], [0.75, None]]
    with letters([]):
        axes = heat_figure(["de", "fr"], cells, "title").axes[0]
        curves = curves_figure(CURVES).axes
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), [[np.nan, 0.25], [0.75, np.nan]])
    assert {(text.get_text(), *text.get_position()) for text in axes.texts} == {("25", 1, 0), ("75", 0, 1)}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["de", "fr"]
    assert [axes.get_title("left") for axes in curves] == ["loss", "eval_R@1"]
    np.testing.assert_array_equal(curves[0].lines[0].get_xydata(), [(1, 4), (2, 3), (4, 1)])


def test_the_map_has_images_and_dots_at_their_places(tmp_path: Path) -> None:
    square = Image.new("RGB", (20, 20), (20, 20, 220))
    images = [Placed(0, 0, "blue", picture=square), Placed(1, 1, "gone")]
    placed = EmbeddingMap("tsne", images, [Placed(0.5, 0.5, "azul", "es"), Placed(1, 0, "blau", "de")])
    with letters([]):
        figure = map_figure(placed)
        save_figure(tmp_path / "map.png", figure)
    with Image.open(tmp_path / "map.png") as drawn:
        assert near(drawn, PAD + 0.1, PAD + 0.1, "#1414dc")
        assert near(drawn, PAD + 4.5, PAD + 3, placed.languages["es"])
        assert near(drawn, PAD + 9 - 0.17, PAD + 0.17, placed.languages["de"])
    assert "2 images and 2 captions, by t-SNE" in [text.get_text() for text in figure.axes[0].texts]


def test_a_run_has_every_picture_the_same_every_time(model: ColourModel, records: list[Record], tmp_path: Path) -> None:
    report = run_report(CURVES, Retrieval(model, records), model, captions=True)
    files, missing = write_run_pictures(tmp_path / "one", report)
    assert [path.name for path in files] == [
        "curves.png", "languages.png", "captions-find-images.png", "images-find-captions.png", "map.png",
    ]  # fmt: skip
    assert missing == ""
    again, _ = write_run_pictures(tmp_path / "two", report)
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(path.name for path in files)


def test_letters_that_no_font_has_are_told_and_fonts_can_be_given(tmp_path: Path) -> None:
    import matplotlib

    nowhere = "\U0010fffd"
    with letters(["rot $x^2$", f"أحمر {nowhere}"]) as missing:
        assert missing == nowhere
        assert matplotlib.rcParams["text.parse_math"] is False
    given = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSerif.ttf"
    with letters(["rot"], [given]):
        assert matplotlib.rcParams["font.family"] == ["DejaVu Serif", "DejaVu Sans"]
    with pytest.raises(UsageError, match="not a font"), letters(["x"], [Path(__file__)]):
        pass


def test_of_letters_that_no_font_has_nothing_else_is_said(tmp_path: Path) -> None:
    nowhere, elsewhere = "\U0010fffd", "\U0010fffc"
    sheet = Sheet(2, 1)
    sheet.text(0.2, 0.5, nowhere)
    with letters([nowhere]), warnings.catch_warnings(record=True) as caught:
        save_figure(tmp_path / "one.png", sheet.figure)
        assert caught == []
        sheet.text(0.2, 0.5, elsewhere)  # nobody was told of this one
        save_figure(tmp_path / "two.png", sheet.figure)
    assert "missing from font" in str(caught[0].message)


def test_long_texts_are_cut_and_wide_letters_count_twice() -> None:
    assert shortened("short", 2, 10) == "short"
    latin, wide = shortened("a" * 100, 2, 10), shortened("赤" * 100, 2, 10)
    assert latin.endswith("…")
    assert len(wide) == pytest.approx(len(latin) / 2, abs=1)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="Matplotlib") as caught, letters(["x"]):
        pass
    assert caught.value.hint == "pip install 'mm-bert[report]'"


def test_the_commands_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "photos")
    for command in (_matrix, evaluate):
        monkeypatch.setattr(command, "load_model", lambda name, device=None, **_: ColourModel())
    assert run(["evaluate", "retrieval", "--data", "photos", "--png", "pictures"]) == 0
    said = capsys.readouterr().err
    names = ["captions-find-images.png", "images-find-captions.png"]
    assert [f"picture: pictures/{name}" in said for name in names] == [True, True]
    assert sorted(path.name for path in Path("pictures").iterdir()) == names
    assert run(["evaluate", "matrix", "--data", "photos", "--png", "matrix.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"][-1] == "image"
    with Image.open("matrix.png") as drawn:
        assert drawn.format == "PNG"
    assert run(["evaluate", "matrix", "--data", "photos", "--png", "m.png", "--metric", "median_rank"]) == 2
    assert "shows fractions" in capsys.readouterr().err
    assert run(["evaluate", "retrieval", "--data", "photos", "--png", "matrix.png"]) == 2
    assert "is a file" in capsys.readouterr().err
    assert run(["evaluate", "retrieval", "--data", "photos", "--png", "no/pictures"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_galleries_of_an_evaluation(model: ColourModel, records: list[Record], tmp_path: Path) -> None:
    files, _ = write_gallery_pictures(tmp_path / "pictures", Retrieval(model, records, languages=["en"]), 2)
    with Image.open(files[0]) as drawn:
        assert drawn.height == pytest.approx(DPI * (PAD + 2 * (TILE + PAD + 3 * pictures.LINE_HEIGHT)), abs=2)
    with Image.open(files[1]) as drawn:
        assert near(drawn, PAD, PAD + TILE / 2, LINE)
