"""Which pairs of concepts may meet where: some are never seen together in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

Pair = frozenset[str]


def held_out_pairs(names: Sequence[str], share: float, rng: np.random.Generator) -> frozenset[Pair]:
    """A share of all pairs of different names, drawn so that every name has about as many."""
    count = len(names)
    order = rng.permutation(count)
    wanted = round(share * count * (count - 1) / 2)
    # Neighbours on a circle, then those two apart, and so on: each round gives every name two pairs.
    rounds = ((order[i], order[(i + step) % count]) for step in range(1, count) for i in range(count))
    found: dict[Pair, None] = {}
    for one, other in rounds:
        if len(found) >= wanted:
            break
        found.setdefault(frozenset((names[one], names[other])))
    return frozenset(found)


def pairs_of(names: Iterable[str]) -> set[Pair]:
    """All pairs of different names among these."""
    return {frozenset(pair) for pair in combinations(sorted(set(names)), 2)}
