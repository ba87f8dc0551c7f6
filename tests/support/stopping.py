"""Interrupting a training run."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

import mmbert.training.run
from mmbert.training.callbacks import ProgressLine


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Pull the plug at the end of ``step``: ``error`` is raised there."""

    class Stopping(ProgressLine):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            if state.global_step == step:
                raise error

    monkeypatch.setattr(mmbert.training.run, "ProgressLine", Stopping)
