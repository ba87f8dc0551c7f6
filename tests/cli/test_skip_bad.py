"""What --skip-bad does in evaluations that read images themselves: records whose image does not open are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from answered import answering_model
from answered import make_squares as make_questions
from colours import save_folder
from grounded import grounding_model
from grounded import make_squares as make_expressions
from written import writing_model

from mmbert.cli.main import run

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def figures(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Of a command that stops at the damaged image, unless it skips."""
    assert run(["evaluate", *args]) == 2
    assert capsys.readouterr().err.startswith("mmbert: error: ")
    assert run(["evaluate", *args, "--skip-bad", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_questions(capsys: pytest.CaptureFixture[str]) -> None:
    make_questions(Path("vqa"), {"val2014": 3})
    answering_model().save_pretrained("model")
    images = sorted(Path("vqa/val2014").iterdir())
    images[1].write_bytes(b"")
    asked = ["vqa", "--model", "model", "--data", "{source: vqa_v2, root: vqa, split: val, boxes: vqa}"]
    found = figures(capsys, *asked)
    assert found["questions"] == 4
    assert len(found["left_out"]) == 2, "each question about the image is listed"
    assert len({bad["where"] for bad in found["left_out"]}) == 2
    assert all(images[1].name in bad["reason"] for bad in found["left_out"])
    assert run(["evaluate", *asked, "--no-images", "--skip-bad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 6, "no image is read"
    for image in images:
        image.write_bytes(b"")
    assert run(["evaluate", *asked, "--skip-bad"]) == 2
    assert "no usable record; the first: " in capsys.readouterr().err


def test_expressions(capsys: pytest.CaptureFixture[str]) -> None:
    make_expressions(Path("squares"), {"val": 2})
    grounding_model().save_pretrained("model")
    Path("squares/train2014/1.png").write_bytes(b"no image")
    found = figures(capsys, "grounding", "-m", "model", "-d", "refcoco", "--from", "squares", "--split", "val")
    assert (found["images"], found["expressions"], len(found["left_out"])) == (1, 4, 4)


def test_translations_and_captions(capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(Path("photos"))
    writing_model().save_pretrained("model")
    Path("photos/red.png").write_bytes(b"")
    written = ["mt", "--model", "model", "--data", "photos", "--to", "de", "--beam", "1"]
    found = figures(capsys, *written)
    assert (found["texts"], [bad["where"] for bad in found["left_out"]]) == (11, ["metadata.jsonl:1"])
    assert run(["evaluate", *written, "--from", "en", "--skip-bad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 12, "no image is read"


def test_sentences_with_their_images(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(Path("photos"))
    save_folder(Path("others"))
    Path("photos/red.png").write_bytes(b"")
    Path("others/blue.png").write_bytes(b"")
    pairs = ["translation-retrieval", "-m", str(model_folder), "-d", "photos", "--from", "en", "--to", "de"]
    assert run(["evaluate", *pairs, "--skip-bad", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)["queries"][0]
    found = figures(capsys, *pairs, "--images", "--distractors", "others")
    assert found["queries"][0] == every - 1
    assert len(found["left_out"]) == 2
