"""mmbert evaluate retrieval as a person runs it, with the model that knows colours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from colours import ColourModel, save_folder, write_metadata

from mmbert.cli import evaluate as command
from mmbert.cli.main import run


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``photos`` in the current folder, in the splits train and test; every model is ``ColourModel``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(command, "load_model", lambda name, device=None, **_: ColourModel())
    rows = save_folder(tmp_path / "photos")
    splits = ["test", "train", *["test"] * 10]
    write_metadata(tmp_path / "photos", [row | {"split": s} for row, s in zip(rows, splits, strict=True)])
    return tmp_path / "photos"


def evaluate(*args: str) -> int:
    return run(["evaluate", "retrieval", *args])


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--data", "photos", "--mode", "rerank", "--lang", "de,fr") == 0
    said = capsys.readouterr().out
    assert "Text to image, photos: 12 images, 24 captions" in said
    assert "Image to text" in said
    rows = [line.split() for line in said.splitlines() if line.strip().startswith(("mean", "de", "fr"))]
    assert rows[:3] == [[name, "100.0", "100.0", "100.0", "1.0"] for name in ("mean", "de", "fr")]


def test_one_is_not_said_as_many(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for figures in ("retrieval", "matrix"):
        assert run(["evaluate", figures, "--data", "photos:train", "--lang", "de"]) == 0
        said = capsys.readouterr().out
        assert "1 image" in said
        assert "1 caption" in said
        assert "1 images" not in said
        assert "1 captions" not in said


def test_one_json_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--data", "photos:test", "--json", "--lang", "de") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 11
    assert report["captions"] == 11
    assert list(report["text_to_image"]) == ["mean", "de"]
    assert report["text_to_image"]["de"]["R@5"] == 1.0
    assert report["left_out"] == []


def test_the_page_compares_with_an_earlier_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--data", "photos", "--json") == 0
    Path("cosine.json").write_text(capsys.readouterr().out, encoding="utf-8")
    assert evaluate("--data", "photos", "--mode", "match", "--before", "cosine.json", "--html", "page.html") == 0
    assert capsys.readouterr().err.endswith("page: page.html\n")
    page = Path("page.html").read_text(encoding="utf-8")
    assert "cosine" in page
    assert 'class="was">from ' in page
    assert page.count('class="query card"') == 4 * 3


def test_images_that_cannot_be_opened(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red.png").write_bytes(b"")
    assert evaluate("--data", "photos") == 2
    assert "metadata.jsonl:1" in capsys.readouterr().err
    assert evaluate("--data", "photos", "--skip-bad", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 11
    assert [entry["where"] for entry in report["left_out"]] == ["metadata.jsonl:1"]
    assert evaluate("--data", "photos", "--skip-bad") == 0
    assert "left out: metadata.jsonl:1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "nowhere"], "no such folder"),
        (["--data", "photos", "--lang", "sw"], "no captions in language 'sw'"),
        (["--data", "photos", "--lang", ","], "no language to evaluate"),
        (["--data", "photos", "--mode", "matching"], "unknown mode 'matching'"),
        (["--data", "photos", "--mode", "rerank", "--rerank", "0"], "cannot re-rank the best 0"),
        (["--data", "photos", "--before", "a.json"], "--before needs a page"),
        (["--data", "photos", "--before", "none.json", "--html", "a.html"], "cannot read none.json"),
        (["--data", "photos", "--before", "photos/red.png", "--html", "a.html"], "photos/red.png is not JSON"),
        (["--data", "photos", "--before", "other.json", "--html", "a.html"], "not a retrieval report"),
        (["--data", "photos", "--html", "photos"], "photos is a folder"),
        (["--data", "starter:text"], "no record has an image and a caption"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.json").write_text('{"text_to_image": {}}', encoding="utf-8")
    assert evaluate(*args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    error, *hint = said.err.splitlines()
    assert error.startswith(f"mmbert: error: {message}")
    assert [line.partition(" ")[0] for line in hint] in ([], ["hint:"])


def test_nothing_is_translated_into_its_own_language(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "mt", "--data", "photos", "--model", "any", "--from", "de", "--to", "de"]) == 2
    assert "translations from 'de' into itself" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--help") == 0
    assert "  mmbert evaluate retrieval " in capsys.readouterr().out
