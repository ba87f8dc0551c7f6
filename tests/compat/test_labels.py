"""A converted checkpoint that is told what its outputs are answers by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from originals import SMALL, answering_shapes, random_state, write_checkpoint, write_vocabulary

from mmbert import MMBert
from mmbert.cli.main import run

ANSWERS = ["yes", "no", "2", "red", "dog", "left", "on table"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_checkpoint(tmp_path / "vqa.model", random_state(answering_shapes(SMALL, answers=len(ANSWERS))))
    words = write_vocabulary(tmp_path / "words")
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS), "utf-8")
    found = ["convert", str(tmp_path / "vqa.model"), "--task", "vqa", "--tokenizer", str(words), "--heads", "2"]
    return [*found, "--out", str(tmp_path / "out"), "--labels", str(tmp_path / "answers.txt")]


def test_it_answers_in_words(command: list[str], tmp_path: Path) -> None:
    assert run(command) == 0
    bert = MMBert.from_pretrained(tmp_path / "out", device="cpu")
    assert sorted(one.text for one in bert.answer(None, "a dog", k=9)) == sorted(ANSWERS)


def test_another_number_of_them_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers.txt").write_text("yes\nno", "utf-8")
    assert run(command) == 2
    assert "2 labels, but no head with so many outputs (answer has 7)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
