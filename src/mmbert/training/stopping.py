"""Being asked to stop: SIGTERM and SIGUSR1 (schedulers send them before they take the machine away).

The step under way is finished, a checkpoint is written, and the run ends with
:class:`~mmbert.errors.TrainingStopped`; the same command goes on from there.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = ("SIGTERM", "SIGUSR1")


class StopOnSignal(TrainerCallback):
    """Listens inside its ``with`` block, where it runs in the main thread; ends the run after the step.

    Attributes:
        asked: name of the signal that this process got.
        agreed: all processes know that one of them was asked (the trainer tells them with the labels' counts).
        stopped: the run ended for it.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self.agreed = False
        self.stopped = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agreed or (self.asked is not None and args.world_size == 1):
            control.should_save = True
            control.should_training_stop = True
            self.stopped = state.global_step < state.max_steps
