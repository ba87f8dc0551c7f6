"""`mmbert info` on the folder of a training run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmbert.cli._runs import describe_run, sparkline
from mmbert.cli.main import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of nine steps, measured at three, interrupted while it wrote its log."""
    (tmp_path / "recipe.yaml").write_text(
        "name: small\ndescription: A test.\nsteps: 12\nevaluation: {metric: R@5}\n", encoding="utf-8"
    )
    lines: list[dict[str, float]] = []
    for step in range(1, 10):
        lines.append({"step": step, "loss": 10.0 - step, "main/itc": 1.0, "main/itc/accuracy": 0.5, "rate/rest": 0.1})
        if step % 3 == 0:
            lines.append({"step": step, "eval_R@5": 0.5 + (step == 6) / 4, "eval_R@1": 0.2})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "lo')
    for name in ("state/checkpoint-9", "state/checkpoint-10", "best"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "best" / "config.json").write_text("{}")
    return tmp_path


def test_a_run_is_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = describe_run(folder)
    assert (found["name"], found["step"], found["steps"], found["finished"]) == ("small", 9, 12, False)
    assert found["best"] == {"step": 6, "metrics": {"R@5": 0.75, "R@1": 0.2}}
    assert found["checkpoints"] == [9, 10]
    assert found["models"] == [str(folder / "best")]
    assert set(found["curves"]) == {"loss", "main/itc", "R@5"}
    assert found["curves"]["R@5"] == [[3, 0.5], [6, 0.75], [9, 0.5]]
    assert run(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    for said in ("9 of 12, not finished", "step 6: R@5 0.75", "▁█▁", "9 → 1", "9 10"):
        assert said in printed
    assert run(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_figures_have_their_units(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text("name: small\ndescription: ''\nsteps: 12\n", encoding="utf-8")
    figures = {"loss": 1.0, "speed/positions_per_second": 1234.5, "speed/padding_saved": 0.304, "speed/memory_gib": 1.5}
    (folder / "log.jsonl").write_text(json.dumps({"step": 9, **figures}) + "\n")
    assert run(["info", str(folder)]) == 0
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["recipe", "small"] in printed
    said = [" ".join(line) for line in printed]
    for row in ("positions per second 1,234", "padding saved 30 %", "memory at most 1.50 GiB"):
        assert any(row == " ".join(line.split()) for line in said), row


def test_the_best_rank_is_the_lowest(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("name: small\nevaluation: {metric: median_rank}\n", encoding="utf-8")
    ranks = {3: 4.0, 6: 2.0, 9: 3.0}
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({"step": step, "eval_median_rank": rank}) + "\n" for step, rank in ranks.items())
    )
    assert describe_run(folder)["best"] == {"step": 6, "metrics": {"median_rank": 2.0}}


def test_a_finished_run_says_how_long_it_took(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "metrics.json").write_text(json.dumps({"seconds": 12.5}))
    assert run(["info", str(folder)]) == 0
    assert "finished in 12.5 s" in capsys.readouterr().out


def test_without_a_checkpoint_the_same_command_starts_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(folder)]) == 0
    assert "not finished; the same command goes on" in capsys.readouterr().out
    shutil.rmtree(folder / "state")
    assert run(["info", str(folder)]) == 0
    assert "not finished; the same command starts over" in capsys.readouterr().out


def test_of_a_run_in_its_first_stage_that_is_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = folder / "whole"
    shutil.copytree(folder, whole / "first")
    assert run(["info", str(whole)]) == 0
    printed = capsys.readouterr().out
    assert "9 of 12, not finished" in printed and "the first; the recipe itself comes after it" in printed
    found = describe_run(whole)
    assert (found["path"], found["stage"]) == (str(whole / "first"), "first")
    shutil.copy(folder / "log.jsonl", whole)
    shutil.copy(folder / "recipe.yaml", whole)
    assert (describe_run(whole)["path"], describe_run(whole)["stage"]) == (str(whole), None)


def test_a_damaged_log_is_an_error_that_names_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 1}\nnonsense\n{"step": 2, "loss": 1}\n')
    assert run(["info", str(folder)]) == 2
    assert "log.jsonl:2" in capsys.readouterr().err


def test_bars_rise_with_the_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline(range(80), width=8) == "▁▂▃▄▅▆▇█"
