"""``mmbert data list``, ``prepare`` and ``download``, and stores in other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora import write_lines, write_multi30k

from mmbert.cli.main import run
from mmbert.data.sources import multi30k


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(multi30k, "SPLITS", ("train", "validation"))
    monkeypatch.setattr(multi30k, "RECORDS", {"train": 4, "validation": 5})
    return write_multi30k(tmp_path / "downloads")


def test_the_list_and_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["corpora"]}
    assert entries["multi30k"]["card"]["counts"]["train"] == {"records": 29000}
    assert entries["folder"]["card"] is None
    for entry in entries.values():
        if entry["card"] is not None:
            assert all(entry["card"][key] for key in ("title", "where", "licence", "size", "files")), entry["name"]
    assert run(["data", "list"]) == 0
    assert "Multi30k" in capsys.readouterr().out
    assert run(["data", "list", "multi30k"]) == 0
    printed = capsys.readouterr()
    assert "github.com/multi30k/dataset" in printed.out
    assert "29,000" in printed.out
    assert "mmbert data prepare multi30k" in printed.err
    assert run(["data", "list", "multi3k"]) == 2
    assert "did you mean 'multi30k'?" in capsys.readouterr().err


def test_prepare_tells_what_it_found_beside_what_was_published(
    downloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = downloads.parent / "store"
    command = ["data", "prepare", "multi30k", "--from", str(downloads), "--out", str(store)]
    settings = ["languages=en,de", f"images={downloads / 'images'}"]
    assert run([*command, *settings]) == 2
    printed = capsys.readouterr()
    assert "validation: records 4 instead of 5 (1 missing)" in printed.err
    assert "--allow-incomplete" in printed.err
    assert run([*command, *settings, "--allow-incomplete"]) == 0
    printed = capsys.readouterr()
    assert "warning: not the published number: validation: records 4 instead of 5 (1 missing)" in printed.err
    assert "captions_de" in printed.out
    assert run(["data", "check", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["images"], found["ok"]) == (8, 8, True)
    assert found["splits"] == {"train": 4, "validation": 4}


def test_prepare_as_json(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = downloads.parent / "store"
    command = ["data", "prepare", "multi30k", "--from", str(downloads), "--out", str(store), "--json"]
    (downloads / "images" / "a0.jpg").unlink()
    settings = ["languages=en", "split=train", f"images={downloads / 'images'}", "--skip-bad", "--allow-incomplete"]
    assert run([*command, *settings]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"]["train"]["counts"]["records"] == 3
    assert [entry["reason"] for entry in found["skipped"]] == ["no image a0.jpg"]
    assert run([*command, "languages"]) == 2
    assert "'languages' is not NAME=VALUE" in capsys.readouterr().err


def test_download_reports_dead_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["a\thttp://127.0.0.1:1/a.jpg", "b\tftp://127.0.0.1/b.jpg", "c\thttp://127.0.0.1:1/c.jpg"]
    write_lines(tmp_path / "Train_GCC-training.tsv", rows)
    command = ["data", "download", "conceptual_captions", "--from", str(tmp_path), "--out", str(tmp_path / "images")]
    assert run([*command, "split=train", "--tries", "1", "--most", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["saved"], found["dead"]) == (0, 2)
    assert found["reasons"] == {"no connection (ConnectionRefusedError)": 1, "neither http nor https": 1}
    assert run([*command, "split=train", "--tries", "1"]) == 0
    assert "3 dead" in capsys.readouterr().err
    assert run(["data", "download", "multi30k", "--from", str(tmp_path), "--out", str(tmp_path / "images")]) == 2
    assert "no addresses" in capsys.readouterr().err
