"""The report of a run: curves from its log, languages against languages, images on a plane, and the page."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from colours import ColourModel, save_folder
from pages import Page, outside_references

from mmbert.cli import report as report_command
from mmbert.cli.main import run
from mmbert.data.sources import open_data
from mmbert.errors import DataError, UsageError
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.run_report import Curve, language_matrix, read_curves

LINES = [
    {"step": 1, "time": 1.0, "loss": 4.0, "epoch": 0.1},
    {"step": 2, "loss": 9.0},
    {"step": 2, "loss": 3.0, "eval_R@1": 0.5},
    {"step": 4, "loss": 1.0, "once": 3, "text": "no figure"},
    {"step": 5, "eval_R@1": 0.75, "loss": float("nan")},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "first"
    made.mkdir(parents=True)
    (made / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return made


def test_curves_are_the_logged_figures(folder: Path) -> None:
    loss, recall = read_curves(folder / "log.jsonl")
    assert loss == Curve("loss", (1, 2, 4), (4.0, 3.0, 1.0))  # step 2 was repeated by a resumed run
    assert recall == Curve("eval_R@1", (2, 5), (0.5, 0.75))
    assert loss.points() == "0.0,0.0 106.7,36.7 320.0,110.0"
    assert Curve("flat", (1, 2), (3.0, 3.0)).points() == "0.0,55.0 320.0,55.0"


def test_a_bad_log_is_named_by_its_line(folder: Path, tmp_path: Path) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"loss": 3}\n')
    with pytest.raises(DataError, match=r"log.jsonl:6"):
        read_curves(folder / "log.jsonl")
    with pytest.raises(UsageError, match="no training run"):
        read_curves(tmp_path / "log.jsonl")


def test_languages_against_languages(tmp_path: Path) -> None:
    save_folder(tmp_path / "photos")
    source = open_data(str(tmp_path / "photos"))
    gallery = build_gallery(source[i] for i in range(len(source)))
    languages, matrix = language_matrix(ColourModel(), gallery)
    assert languages == ["ar", "de", "en", "fr"]
    assert np.isnan(matrix.diagonal()).all()
    by_hand = 0
    model = ColourModel()
    german, french = (gallery.texts[gallery.languages[code]] for code in ("de", "fr"))
    scores = model.encode_text(german) @ model.encode_text(french).T
    groups = gallery.text_group
    for row, group in enumerate(groups[gallery.languages["de"]]):
        right = groups[gallery.languages["fr"]] == group
        by_hand += scores[row][right].max() > scores[row][~right].max()
    assert matrix[1, 3] == pytest.approx(by_hand / len(german))


def photos_of(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos to evaluate on in ``tmp_path``, and a model for the run that knows their colours."""
    save_folder(tmp_path / "photos")
    (folder / "best").mkdir()
    (folder / "best" / "config.json").write_text("{}")
    monkeypatch.setattr(report_command, "load_model", lambda name, device=None, int8=False: ColourModel())


def test_without_the_extra_the_map_says_what_it_is_and_how_to_get_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos_of(folder, tmp_path, monkeypatch)
    asked = ["report", str(folder), "--data", str(tmp_path / "photos")]
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else real(name, *rest)
    )
    assert run(asked) == 0
    assert "pip install 'mm-bert[report]'" in capsys.readouterr().err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "principal components" in page
    assert "needs scikit-learn" in page
    assert run([*asked, "--map", "tsne"]) == 2
    assert "t-SNE is not installed" in capsys.readouterr().err
    assert run([*asked, "--map", "pca"]) == 0
    assert "needs scikit-learn" not in (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos_of(folder, tmp_path, monkeypatch)
    assert run(["report", str(folder), "--data", str(tmp_path / "photos")]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert outside_references(page) == []
    parsed = Page(page)
    assert len(parsed.all("polyline", "curve")) == 2
    assert len(parsed.all("article", "query")) == 4  # a caption of each language
    assert len(parsed.all("img")) == 4 * 5 + 4 + 12  # found, described, on the map
    assert [text for _, text in parsed.all("h2")] == [
        "Recall by language", "Language to language", "Training", "Captions find images", "Images find captions",
        "Where images lie",
    ]  # fmt: skip
    asked = ["report", str(folder), "--data", str(tmp_path / "photos"), "--map", "pca", "--map-captions"]
    assert run(asked) == 0
    captioned = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len([attrs for attrs, _ in captioned.all("i") if ": " in (attrs.get("title") or "")]) == 12 * 4
    assert "Where images and captions lie" in [text for _, text in captioned.all("h2")]
    assert run(["report", str(folder), "--curves-only", "--out", str(tmp_path / "curves.html")]) == 0
    assert len(Page((tmp_path / "curves.html").read_text()).all("h2")) == 1
    capsys.readouterr()
    assert run(["report", str(folder)]) == 2
    assert "does not say what it was evaluated on" in capsys.readouterr().err


def test_of_a_run_that_is_not_measured_by_retrieval_the_curves_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "recipe.yaml").write_text("name: x\nevaluation: {measure: translation}\n")
    (folder / "metrics.json").write_text('{"data": "photos", "evaluation": {"bleu": 1.0}}')
    assert run(["report", str(folder)]) == 0
    assert "measured by translation, not by retrieval: curves only" in capsys.readouterr().err
    assert "<polyline" in (folder / "report.html").read_text()


def test_of_a_run_in_its_first_stage_the_curves_are_that_stages(folder: Path) -> None:
    whole = folder.rename(folder.parent / "moved").parent / "whole"
    whole.mkdir()
    (folder.parent / "moved").rename(whole / "first")
    assert run(["report", str(whole), "--curves-only"]) == 0
    page = (whole / "report.html").read_text()
    assert "<polyline" in page and "Training run whole" in page and "the first; the recipe itself" in page
