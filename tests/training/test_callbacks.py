"""Weight averaging, the best checkpoint, and what is written while training."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from mmbert.training.callbacks import AverageWeights, KeepBest, LogLines, ProgressLine

SPEED = {"speed/positions_per_second": 123.0, "speed/memory_gib": 1.0}


def state(step: int) -> TrainerState:
    made = TrainerState()
    made.global_step = step
    made.is_world_process_zero = True
    made.max_steps = 10
    return made


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), report_to=[])


def test_the_average_is_exponential_and_forgets_its_start(args: TrainingArguments) -> None:
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = AverageWeights(model, 0.6)
    expected = model.weight.detach().clone().double()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 20):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=generator))
        average.on_step_end(args, state(step), TrainerControl())
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        torch.testing.assert_close(average.average["weight"].double(), expected, atol=1e-5, rtol=0)
    assert set(average.average) == {"weight"}, "what is not trained is not averaged"


def test_inside_the_block_the_model_has_the_average_and_afterwards_its_own_weights(args: TrainingArguments) -> None:
    model = torch.nn.Linear(3, 2)
    average = AverageWeights(model, 0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.detach().clone()
    with average:
        assert torch.equal(model.weight, start)
    assert torch.equal(model.weight, own)
    assert torch.equal(average.average["weight"], start)


def test_the_average_is_saved_and_taken_up_again(args: TrainingArguments, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    average = AverageWeights(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    average.on_step_end(args, state(4), TrainerControl())
    (tmp_path / "checkpoint-4").mkdir()
    average.write(tmp_path / "checkpoint-4")
    again = AverageWeights(torch.nn.Linear(3, 2), 0.5)
    again.resume(tmp_path / "checkpoint-4")
    assert torch.equal(again.average["weight"], average.average["weight"])


def test_only_a_better_result_is_kept(args: TrainingArguments) -> None:
    kept: list[float] = []
    keep = KeepBest("eval_R@1", lambda metrics: kept.append(metrics["eval_R@1"]))
    shared = state(0)
    for step, value in enumerate((0.2, 0.1, 0.2, 0.5, 0.4), start=1):
        shared.global_step = step
        keep.on_evaluate(args, shared, TrainerControl(), metrics={"eval_R@1": value, "eval_R@5": 1 - value})
    keep.on_evaluate(args, shared, TrainerControl(), metrics={"eval_other": 9.0})
    assert kept == [0.2, 0.5]
    assert (shared.best_metric, shared.best_global_step) == (0.5, 4)


def test_of_a_rank_the_lowest_is_kept(args: TrainingArguments) -> None:
    kept: list[float] = []
    keep = KeepBest("eval_median_rank", lambda metrics: kept.append(metrics["eval_median_rank"]))
    shared = state(0)
    for value in (6.0, 7.0, 2.0, 2.0, 3.0):
        keep.on_evaluate(args, shared, TrainerControl(), metrics={"eval_median_rank": value})
    assert kept == [6.0, 2.0]
    assert shared.best_metric == 2.0


def test_a_first_result_of_zero_is_kept(args: TrainingArguments) -> None:
    kept: list[dict[str, float]] = []
    KeepBest("eval_R@1", kept.append).on_evaluate(args, state(1), TrainerControl(), metrics={"eval_R@1": 0.0})
    assert len(kept) == 1


def test_figures_are_one_json_object_a_line(args: TrainingArguments, tmp_path: Path) -> None:
    log = LogLines(tmp_path / "log.jsonl")
    log.on_log(args, state(3), TrainerControl(), logs={"loss": 0.5})
    log.on_log(args, state(4), TrainerControl(), logs={})
    log.on_log(args, state(5), TrainerControl(), logs={"eval_R@1": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("loss"), line.get("eval_R@1")) for line in lines] == [
        (3, 0.5, None),
        (5, None, 1.0),
    ]


def test_other_processes_write_nothing(args: TrainingArguments, tmp_path: Path) -> None:
    other = state(3)
    other.is_world_process_zero = False
    LogLines(tmp_path / "log.jsonl").on_log(args, other, TrainerControl(), logs={"loss": 0.5})
    kept: list[dict[str, float]] = []
    KeepBest("eval_R@1", kept.append).on_evaluate(args, other, TrainerControl(), metrics={"eval_R@1": 1.0})
    assert not (tmp_path / "log.jsonl").exists()
    assert not kept


def test_no_bar_is_drawn_into_a_pipe(args: TrainingArguments, capfd: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.on_train_begin(args, state(0), TrainerControl())
    for step in range(1, 4):
        line.on_step_end(args, state(step), TrainerControl())
        line.on_log(args, state(step), TrainerControl(), logs={"loss": 0.5})
    line.on_train_end(args, state(3), TrainerControl())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_line_says_first_what_matters_and_keeps_what_was_measured(
    args: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    line = ProgressLine("eval_R@1")
    line.on_train_begin(args, state(0), TrainerControl())
    told = (
        {"loss": 5.0, "grad_norm": 1.0, "main/itc": 0.75, "main/itc/accuracy": 0.1, "rate/rest": 0.1, **SPEED},
        {"eval_R@1": 0.5, "eval_R@5": 0.9},
        {"loss": 4.0, "main/itc": 0.5, **SPEED},
        {"train_runtime": 3.0, "train_loss": 4.5},
    )
    found = []
    for step, logs in enumerate(told, start=1):
        line.on_log(args, state(step), TrainerControl(), logs=logs)
        found.append(line.bar.postfix)
    line.on_train_end(args, state(4), TrainerControl())
    assert found == [
        "loss=5, positions/s=123, main/itc=0.75",
        "loss=5, R@1=0.5, positions/s=123, main/itc=0.75",
        *["loss=4, R@1=0.5, positions/s=123, main/itc=0.5"] * 2,
    ]
