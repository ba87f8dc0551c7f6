"""What is written is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbert.errors import UsageError
from mmbert.files import new_folder, whole_file


def test_a_file_is_in_place_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        interrupted(part)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/a.txt", "file/a.txt", "folder"])
def test_a_file_that_cannot_be_written_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*: "), whole_file(tmp_path / name) as part:
        part.write_text("text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        interrupted(folder / "a.txt")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "a.txt").read_text() == "mine"
