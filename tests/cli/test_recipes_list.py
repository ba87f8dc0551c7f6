"""mmbert train --list as a person reads it."""

from __future__ import annotations

import json

import pytest

from mmbert.cli.main import run


def test_our_recipes_come_first_and_published_ones_do_not_drown_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert run(["train", "--list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "recipes"
    described = [line for line in lines if line.startswith("retrieval ")]
    assert described[0].endswith("in the languages of your captions.")
    (group,) = (line for line in lines if line.startswith("MM-BERT/retrieval"))
    assert group.split()[1] == "24"
    assert len(lines) < 60
    assert run(["train", "--list", "mixed-5x"]) == 0
    said = capsys.readouterr().out
    assert "mm-bert-retrieval-mixed-5x-from-task-c" in said
    assert "from task C." in said
    assert "mm-bert-mt" not in said


def test_programs_get_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--list", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["retrieval"]["group"] == "recipes"
    assert found["mm-bert-task-a"]["group"] == "MM-BERT/pretrain"
    assert found["mm-bert-task-a"]["published"].endswith("_pretrained_LR6")
    assert not [name for name in found if name.startswith("_")]


def test_a_word_that_no_recipe_is_about_and_no_recipe_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--list", "klingon"]) == 2
    assert "no recipe is about 'klingon'" in capsys.readouterr().err
    assert run(["train"]) == 2
    assert "which recipe?" in capsys.readouterr().err
