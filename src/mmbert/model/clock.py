"""How long something takes on this machine, for whoever has to choose the quicker of two ways."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of ``repeats`` runs, after one that nobody counts: whatever disturbs a run makes it longer."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
