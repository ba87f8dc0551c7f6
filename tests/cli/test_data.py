"""``mmbert data list`` and ``mmbert data check`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmbert.cli.main import run
from mmbert.data.sources import parse_data
from mmbert.data.yaml_values import read_settings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (9, 7), colour).save(tmp_path / name)
    rows = [
        {"file_name": "a.png", "caption_de": "[bold]rot[/bold]", "split": "train"},
        {"file_name": "b.png", "caption_de": "[bold]rot[/bold]", "split": "test"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_list_names_the_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)["corpora"]]
    assert {"starter", "folder", "text"} <= set(names)
    assert run(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert "starter" in printed
    assert "heldout_style" in printed


def test_a_sound_folder_is_described(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(photos)]) == 0
    printed = capsys.readouterr()
    for word in ("records", "9x7", "de", "train", "test", "[bold]rot[/bold]"):
        assert word in printed.out
    assert "warning: 1 caption in more than one split" in printed.err


def test_json_is_one_object(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(photos), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["records"] == 2
    assert found["languages"] == {"de": {"records": 2, "captions": 2, "texts": 0}}
    assert found["sizes"]["largest"] == [9, 7]


def test_broken_images_are_listed_and_decide_the_exit_code(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:40])
    assert run(["data", "check", str(photos)]) == 2
    printed = capsys.readouterr()
    assert "metadata.jsonl:2" in printed.out
    assert "b.png" in printed.out
    assert printed.err.splitlines()[-2] == "mmbert: error: 1 broken record or image [metadata.jsonl:2]"
    assert "--skip-bad" in printed.err.splitlines()[-1]
    assert run(["data", "check", str(photos), "--skip-bad", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [entry["where"] for entry in found["broken"]] == ["metadata.jsonl:2"]


def test_settings_know_norwegian_from_false() -> None:
    found = read_settings(["language=no", "captions={no: no, en: en}", "check=true", "boxes=False", "split=2016"])
    assert found == {
        "language": "no",
        "captions": {"no": "no", "en": "en"},
        "check": True,
        "boxes": False,
        "split": 2016,
    }
    assert parse_data("{source: text, path: x, language: no}")["language"] == "no"


def test_one_image_in_two_splits_fails_even_with_skip_bad(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes())
    for flags in ([], ["--skip-bad"]):
        assert run(["data", "check", str(photos), *flags]) == 2
        printed = capsys.readouterr()
        assert "a.png, b.png" in printed.out
        assert "the same image is in more than one split (test, train)" in printed.err


def test_a_missing_folder_is_one_line_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(tmp_path / "gone")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first == f"mmbert: error: no such folder [{tmp_path / 'gone'}]"
    assert second.startswith("hint: ")


@pytest.mark.parametrize("command", ["check", "list"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", command, "--help"]) == 0
    assert f"mmbert data {command}" in capsys.readouterr().out.split("Usage:")[1].partition("\n")[2]
