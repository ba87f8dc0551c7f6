"""Figures about the service in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
JOBS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts and histograms; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Labels, int] = defaultdict(int)
        self._histograms: dict[tuple[str, Labels], list[float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """A figure that is read when it is asked for."""
        self._gauges[name] = read

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """One answered request; ``path`` is the route, not what was asked (else every image were a figure)."""
        with self._lock:
            self._counts[("method", method), ("path", path), ("status", str(status))] += 1
            self._observe("mmbert_request_seconds", (("path", path),), seconds, SECONDS)

    def batch(self, kind: str, jobs: int, seconds: float) -> None:
        """One batch through the model."""
        with self._lock:
            self._observe("mmbert_batch_jobs", (("kind", kind),), jobs, JOBS)
            self._observe("mmbert_batch_seconds", (("kind", kind),), seconds, SECONDS)

    def _observe(self, name: str, labels: Labels, value: float, bounds: tuple[float, ...]) -> None:
        row = self._histograms.setdefault((name, labels), [0.0] * (len(bounds) + 2))  # buckets, more, sum
        row[bisect_left(bounds, value)] += 1
        row[-1] += value

    def text(self) -> str:
        """Everything, one figure a line."""
        with self._lock:
            lines = ["# TYPE mmbert_requests_total counter"]
            lines += [f"mmbert_requests_total{_labels(labels)} {count}" for labels, count in self._counts.items()]
            told: set[str] = set()
            for (name, labels), row in sorted(self._histograms.items()):
                if name not in told:
                    lines.append(f"# TYPE {name} histogram")
                    told.add(name)
                bounds = JOBS if name.endswith("_jobs") else SECONDS
                total = 0.0
                for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), row[:-1], strict=True):
                    total += count
                    lines.append(f"{name}_bucket{_labels((*labels, ('le', bound)))} {total:g}")
                lines += [f"{name}_sum{_labels(labels)} {row[-1]:.6f}", f"{name}_count{_labels(labels)} {total:g}"]
        for name, read in self._gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {read():g}"]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    escaped = ((name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
