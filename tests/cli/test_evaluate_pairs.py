"""mmbert evaluate translation-retrieval as a person runs it, with vectors by chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from random_model import RandomModel

from mmbert.cli import evaluate as command
from mmbert.cli.main import run


@pytest.fixture(autouse=True)
def parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder ``parallel`` of sentences in two languages, in the splits test and train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(command, "load_model", lambda name, device=None, **_: RandomModel(3))
    rows = [{"text_en": f"one {i}", "text_de": f"eins {i}", "split": "train" if i % 3 else "test"} for i in range(30)]
    (tmp_path / "parallel").mkdir()
    (tmp_path / "parallel" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")


def evaluate(*args: str) -> int:
    return run(["evaluate", "translation-retrieval", "--model", "m", "--from", "en", "--to", "de", *args])


def by_hand(distractors: bool) -> float:
    """R@1 from English to German by numpy alone."""
    asked = [i for i in range(30) if i % 3 == 0]
    shown = asked + ([i for i in range(30) if i % 3] if distractors else [])
    model = RandomModel(3)
    scores = model.encode_text([f"one {i}" for i in asked]) @ model.encode_text([f"eins {i}" for i in shown]).T
    return float((scores.argmax(1) == np.arange(10)).mean())


@pytest.mark.parametrize("distractors", [False, True])
def test_one_json_object_for_programs(distractors: bool, capsys: pytest.CaptureFixture[str]) -> None:
    further = ["--distractors", "parallel:train"] if distractors else []
    assert evaluate("--data", "parallel:test", *further, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["queries"] == [10, 10]
    assert report["candidates"] == [30, 30] if distractors else [10, 10]
    assert report["en_to_de"]["R@1"] == by_hand(distractors)
    assert report["mode"] == "embed"
    assert report.get("distractors") == ("parallel:train" if distractors else None)


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--data", "parallel:test") == 0
    said = capsys.readouterr().out
    assert "Translation retrieval, parallel:test" in said
    rows = [line.split() for line in said.splitlines() if line.strip().startswith(("en", "de", "mean"))]
    assert [row[0] for row in rows] == ["en", "de", "mean"]
    assert rows[0][:6] == ["en", "to", "de", "10", "10", f"{100 * by_hand(False):.1f}"]


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--data", "parallel:test", "--mode", "embedd") == 2
    assert "did you mean 'embed'" in capsys.readouterr().err
    assert evaluate("--data", "parallel:test", "--to", "cs") == 2
    assert "no sentences in language 'cs'" in capsys.readouterr().err
