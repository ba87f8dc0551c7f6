"""Which pairs of concepts may meet where: some are never seen together in training.

The problems that build on one another (grounding, then questions) hold out the same pairs and relations, so that what one
tests, none of them has shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import combinations

import numpy as np

from scenes.compose import RELATIONS
from scenes.concepts import CONCEPTS

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


KEPT_APART = 0.15
"""Share of the pairs of things that no training picture shows together."""


def share_of(*words: str) -> float:
    """A number from 0 to 1 that belongs to these words: the same always, for each anew."""
    return int.from_bytes(blake2b("|".join(words).encode(), digest_size=8).digest(), "big") / 2**64


def kept_apart(one: str, other: str) -> bool:
    """Whether no training picture shows the two things together."""
    return share_of("pair", *sorted((one, other))) < KEPT_APART


def draw_together(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` different things of which no two are kept apart."""
    while True:
        chosen: list[str] = []
        for number in rng.permutation(len(CONCEPTS)):
            name = CONCEPTS[int(number)]
            if not any(kept_apart(name, other) for other in chosen):
                chosen.append(name)
            if len(chosen) == count:
                return chosen


def held_out_relations(rng: np.random.Generator) -> dict[str, str]:
    """Each thing's relation that is kept for the test; each relation is that of a quarter of the things."""
    order = rng.permutation(len(CONCEPTS))
    return {CONCEPTS[int(place)]: RELATIONS[number % len(RELATIONS)] for number, place in enumerate(order)}
