"""Interrupting a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

import mmbert.training.run
from mmbert.training.callbacks import ProgressLine
from mmbert.training.recipe import Recipe
from mmbert.training.run import train


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Pull the plug at the end of ``step``: ``error`` is raised there."""

    class Stopping(ProgressLine):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            if state.global_step == step:
                raise error

    monkeypatch.setattr(mmbert.training.run, "ProgressLine", Stopping)


class Interruption(Exception):
    """What :func:`interrupt` ends a run with."""


def interrupt(recipe: Recipe, out: Path, step: int) -> None:
    """Train, and pull the plug at the end of ``step``."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(step, patch, Interruption)
        with pytest.raises(Interruption):
            train(recipe, out)
