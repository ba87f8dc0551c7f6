"""`mmbert ground` and `mmbert evaluate grounding` as a person runs them, with a small real model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from grounded import draw_squares, grounding_model
from PIL import Image
from vl_corpora import make_refcoco

from mmbert.cli.main import run


@pytest.fixture(scope="module")
def grounding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grounding")
    grounding_model().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with an image of 64 x 64 and its boxes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    image, names, boxes = draw_squares(np.random.default_rng(0))
    image.save("a.png")
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    Path("boxes.json").write_text(json.dumps(corners))
    Path("named.json").write_text(json.dumps([{"box": b, "name": n} for b, n in zip(corners, names, strict=True)]))
    return tmp_path


def test_the_best_boxes_and_a_picture(grounding_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ground", "a.png", "the red square", "--model", str(grounding_folder), "--boxes", "named.json"]
    assert run([*asked, "--json", "--top", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    boxes = json.loads(Path("named.json").read_text())
    assert answer["candidates"] == 4
    assert len(answer["best"]) == 3
    scores = [one["score"] for one in answer["best"]]
    assert scores == sorted(scores, reverse=True)
    for one in answer["best"]:
        assert (one["box"], one["name"]) == (boxes[one["number"]]["box"], boxes[one["number"]]["name"])
    assert run([*asked, "--out", "found.png"]) == 0
    said = capsys.readouterr()
    assert said.err.endswith("written: found.png\n")
    first = next(line for line in said.out.splitlines() if "%" in line)
    assert first.split()[0] == str(answer["best"][0]["number"])
    with Image.open("found.png") as picture:
        assert picture.size[0] == 512
    assert run(["ground", "a.png", "the red square", "-m", str(grounding_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == 9 + 25 + 49


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0, 0, 5, 5], [0, 0, 90, 9]]", "box (0, 0, 90, 9) lies outside of the image of 64x64 [bad.json:[2]]"),
        ("[[5, 5, 1, 9]]", "has no area [bad.json:[1]]"),
        ("[[1, 2, 3]]", "where a box [x1, y1, x2, y2] belongs [bad.json:[1]]"),
        ('[{"name": "x"}]', "where a box [x1, y1, x2, y2] belongs [bad.json:[1]]"),
        ('[[1, 2, "3", 4]]', "[bad.json:[1]]"),
        ('{"boxes": [[1, 2, 3, 4]]}', "not a list of boxes"),
        ("[]", "no box in it"),
        ("[[1, 2,", "bad.json"),
    ],
)
def test_files_that_hold_no_boxes(
    content: str, message: str, grounding_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.json").write_text(content)
    assert run(["ground", "a.png", "x", "-m", str(grounding_folder), "--boxes", "bad.json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err.splitlines()[0]


def test_a_model_that_cannot(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ground", "a.png", "the red square", "-m", str(model_folder)]) == 2
    assert "this model does not ground expressions" in capsys.readouterr().err


def test_accuracy_by_split(here: Path, grounding_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_refcoco(here / "downloads")
    asked = ["evaluate", "grounding", "--data", "refcoco_plus", "--from", "downloads", "-m", str(grounding_folder)]
    assert run([*asked, "--split", "val,testA", "--json", "--out", "answers.jsonl"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["splits"]) == ["val", "testA"]
    assert report["splits"]["testA"]["expressions"] == 1
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert report["accuracy"] == sum(answer["right"] for answer in answers) / 2
    assert run([*asked, "--split", "val", "--candidates", "detections"]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("val"))
    assert row[1:4] == ["1", "1", "3.0"]


def test_a_split_counts_once_and_the_title_names_what_was_measured(
    here: Path, grounding_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_refcoco(here / "downloads")
    asked = ["evaluate", "grounding", "--data", "refcoco_plus:val", "--from", "downloads", "-m", str(grounding_folder)]
    assert run([*asked, "--split", "testA, testA", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["data"], report["expressions"], list(report["splits"])) == ("refcoco_plus", 1, ["testA"])
    assert run([*asked, "--split", "testA"]) == 0
    assert "Grounding, refcoco_plus " in capsys.readouterr().out
    assert run(asked) == 0
    assert "Grounding, refcoco_plus:val" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "refcoco_plus"], "data source 'refcoco_plus' needs its files"),
        (["--data", "downloads", "--from", "downloads"], "downloads is a folder already"),
        (["--data", "refcoco_plus", "--from", "downloads"], "which split of refcoco_plus?"),
        (["--data", "refcoco_plus", "--candidates", "objects"], "--candidates goes with --from"),
        (["--data", "refcoco_plus", "--from", "downloads", "--split", "testC"], "no split 'testC'"),
        (
            ["--data", "refcoco_plus", "--from", "downloads", "--split", "val", "--candidates", "all"],
            "option 'candidates'",
        ),
    ],
)
def test_mistakes_are_one_line_and_a_hint(
    args: list[str], message: str, here: Path, grounding_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_refcoco(here / "downloads")
    assert run(["evaluate", "grounding", *args, "-m", str(grounding_folder)]) == 2
    assert message in capsys.readouterr().err.splitlines()[0]
