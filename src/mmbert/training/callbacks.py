"""What happens around the steps: weight averaging, the best checkpoint, the progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmbert.evaluation.measures import merit
from mmbert.training.checkpoints import write_whole
from mmbert.training.sharding import gathered, local, shard_like

AVERAGE_FILE = "average.safetensors"
LINE = "{l_bar}{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
SPEED = "speed/positions_per_second"


class AverageWeights(TrainerCallback):
    """Exponential moving average of the trainable weights, which is what is evaluated and saved.

    Args:
        model: the model that is trained; where it is sharded, so is the average.
        decay: weight of the old average per step; early on less, so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self._whole: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        ours, theirs = [], []
        for name, parameter in self.model.named_parameters():
            if name in self.average:
                ours.append(local(self.average[name]))
                theirs.append(local(parameter))
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def collect(self) -> None:
        """Gather what :meth:`write` writes, where the average is sharded; on all processes."""
        self._whole = gathered(self.average)

    def write(self, folder: Path) -> None:
        """Into a checkpoint."""
        save_file({n: t.contiguous() for n, t in (self._whole or self.average).items()}, folder / AVERAGE_FILE)
        self._whole = {}

    def resume(self, checkpoint: Path) -> None:
        """Take the average of an interrupted run."""
        for name, value in load_file(checkpoint / AVERAGE_FILE).items():
            local(self.average[name]).copy_(local(shard_like(value, self.average[name])))

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.average:
                held: Tensor = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(held)


class Intervals(TrainerCallback):
    """How often is logged and saved is what the recipe says now; the state of an interrupted run says what it said."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]


class KeepBest(TrainerCallback):
    """Calls ``save`` whenever the watched metric is better than ever before.

    Args:
        metric: its key, e.g. ``eval_R@1``; :func:`~mmbert.evaluation.measures.merit` says which way is better.
        save: writes the model.
    """

    def __init__(self, metric: str, save: Callable[[dict[str, float]], None]) -> None:
        self.metric = metric
        self.save = save

    def on_evaluate(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        value = metrics.get(self.metric)
        if value is None:
            return
        if state.best_metric is None or merit(self.metric, value) > merit(self.metric, state.best_metric):
            state.best_metric = value  # on every process: their states are one
            state.best_global_step = state.global_step
            if state.is_world_process_zero:
                self.save(metrics)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off while it was written is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict) and "step" in line]


class LogLines(TrainerCallback):
    """Every logged figure as one JSON object a line, in ``log.jsonl``.

    Args:
        path: the file; a run that goes on takes out the lines of steps that it repeats.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.path.is_file():
            kept = [line for line in read_log(self.path) if line["step"] <= state.global_step]
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, float] | None = kwargs.get("logs")
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "time": round(time.time(), 1), **logs}) + "\n")


class ProgressLine(TrainerCallback):
    """One line on stderr with time left, losses and speed; nothing when stderr is not a terminal.

    What matters most stands first, since a line that is too long for the terminal is cut off on the right.

    Args:
        watched: key of the metric that decides what is best; its latest figure stays in the line.
    """

    def __init__(self, watched: str | None = None) -> None:
        self.watched = watched
        self.bar: Any = None
        self._shown: dict[str, str] = {}
        self._measured: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            hidden = not sys.stderr.isatty()
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, disable=hidden, unit="step", bar_format=LINE
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, float] | None = kwargs.get("logs")
        if self.bar is None or not logs:
            return
        if self.watched in logs:
            self._measured = {self.watched.removeprefix("eval_"): f"{logs[self.watched]:.3g}"}
        if "loss" in logs:
            speed = {"positions/s": logs[SPEED]} if SPEED in logs else {}
            objectives = {k: v for k, v in logs.items() if k.count("/") == 1 and not k.startswith(("rate/", "speed/"))}
            self._shown = {k: f"{v:.3g}" for k, v in {"loss": logs["loss"], **speed, **objectives}.items()}
        self.bar.set_postfix(dict(list(self._shown.items())[:1]) | self._measured | self._shown, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
