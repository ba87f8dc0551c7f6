"""Timing on this machine, for code that chooses the quicker of two implementations."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the shortest of ``repeats`` runs after a warm-up (other work only makes a run longer)."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
