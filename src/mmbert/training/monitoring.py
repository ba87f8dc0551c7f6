"""TensorBoard for a run: a folder of its own, in which a run that goes on takes back what it repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmbert.evaluation.examples import Examples


class TensorBoard(TrainerCallback):
    """Every logged figure as a curve: losses, rates, norm, speed by what they are called, evaluations under ``eval/``.

    Evaluations also leave examples: a table, and pictures where there are some.

    Args:
        folder: of the event files.
        step: that the run begins after; later points of an earlier try are dropped.
        examples: of the latest evaluation, None where it has none.
    """

    def __init__(self, folder: Path, step: int, examples: Callable[[], Examples | None] = lambda: None) -> None:
        self.folder = folder
        self.step = step
        self.examples = examples
        self.writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1)  # type: ignore[no-untyped-call]

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.writer is None:
            return
        for name, value in (kwargs.get("logs") or {}).items():
            if isinstance(value, int | float):
                self.writer.add_scalar(_curve(name), value, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.show(state.global_step)

    def show(self, step: int) -> None:
        """Write the latest evaluation's examples; after the run's end, too."""
        found = self.examples()
        if self.writer is None or found is None:
            return
        self.writer.add_text("examples/table", found.as_markdown(), step)
        for name, picture in found.pictures.items():
            self.writer.add_image(f"examples/{name}", np.asarray(picture), step, dataformats="HWC")
        self.writer.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the rest; what is shown later goes into another file."""
        if self.writer is not None:
            self.writer.close()


def _curve(name: str) -> str:
    """``eval_R@1`` is ``eval/R_1`` (TensorBoard takes no ``@``); ``loss`` and the like stand under ``train/``."""
    clean = name.replace("@", "_")
    if clean.startswith("eval_"):
        return f"eval/{clean.removeprefix('eval_')}"
    return clean if "/" in clean else f"train/{clean}"
