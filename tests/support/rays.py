"""As much of Ray's data sets as is used, in one process: for tests where Ray is not installed."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest


class Rows:
    """A data set."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items

    def map_batches(
        self, worker: Any, *, fn_constructor_args: tuple[Any, ...], batch_size: int, compute: Any, num_gpus: int
    ) -> Rows:
        assert (batch_size, num_gpus) == (1, 0)
        self.worker = worker(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for item in reversed(self.items):  # in whatever order
            found = self.worker({name: np.array([value], dtype=object) for name, value in item.items()})
            yield {name: values[0] for name, values in found.items()}


def stand_in_for_ray(patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Put it where Ray is imported from; what it is asked for is noted in what this gives."""
    asked: dict[str, int] = {}

    def from_items(items: list[dict[str, Any]], *, override_num_blocks: int) -> Rows:
        assert override_num_blocks == len(items)
        asked["pieces"] = len(items)
        return Rows(items)

    def pool(size: int) -> None:
        asked["workers"] = size

    ray, data = types.ModuleType("ray"), types.ModuleType("ray.data")
    data.from_items, data.ActorPoolStrategy = from_items, pool  # type: ignore[attr-defined]
    ray.data = data  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "ray", ray)
    patch.setitem(sys.modules, "ray.data", data)
    return asked
