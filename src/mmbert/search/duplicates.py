"""Near-duplicates: images of an index whose vectors are almost the same, put together in groups."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from mmbert.errors import UsageError
from mmbert.search.index import SearchIndex

Array: TypeAlias = np.ndarray[Any, Any]
BLOCK = 2048
NEIGHBOURS = 10


@dataclass(frozen=True)
class Duplicate:
    """One image of a group.

    Args:
        path: of the image.
        score: cosine with the group's first image.
        same_file: its bytes are those of the first.
        width, height: pixels.
    """

    path: str
    score: float
    same_file: bool
    width: int | None
    height: int | None


def find_duplicates(index: SearchIndex, *, threshold: float = 0.97, progress: bool = False) -> list[list[Duplicate]]:
    """Groups of images that look the same.

    Two images belong together when their cosine reaches ``threshold``, or through a third. Where the index compares
    all vectors (up to 100,000 images), every pair is looked at; above, each image's ten nearest.

    Returns:
        Groups of two or more, the largest first; in each, the image with most pixels first. Of a file and links to it
        the file alone is there.

    Raises:
        UsageError: ``threshold`` is not between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"no cosine is {threshold}", hint="the threshold is above 0 and at most 1")
    rows, vectors = index.everything()
    exact = index.about.neighbours is None
    pairs = _pairs(vectors, threshold) if exact else _near(index, rows, vectors, threshold)
    parent = np.arange(len(vectors))
    for left, right in tqdm(pairs, desc="comparing", unit="block", leave=False, disable=not progress):
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            parent[_root(parent, one)] = _root(parent, other)
    groups: dict[int, list[int]] = {}
    for row in range(len(vectors)):
        groups.setdefault(_root(parent, row), []).append(row)
    alone = [_files(index, rows, members) for members in groups.values() if len(members) > 1]
    found = [_group(index, rows, vectors, members) for members in alone if len(members) > 1]
    return sorted(found, key=lambda group: (-len(group), group[0].path))


def _files(index: SearchIndex, rows: dict[str, list[Any]], members: Iterable[int]) -> list[int]:
    """One row for each file: a link to another's is no copy, and to keep it instead would be to lose the image."""
    kept: dict[str, int] = {}
    for row in members:
        path = index.full_path(rows["path"][row])
        real = os.path.realpath(path)
        if real not in kept or not Path(path).is_symlink():
            kept[real] = row
    return list(kept.values())


def _pairs(vectors: Array, threshold: float) -> Iterator[tuple[Array, Array]]:
    """Rows of all pairs that are near enough, each once, block by block."""
    for start in range(0, len(vectors), BLOCK):
        part = vectors[start : start + BLOCK]
        for other in range(start, len(vectors), BLOCK):
            left, right = np.nonzero(part @ vectors[other : other + BLOCK].T >= threshold)
            left, right = left + start, right + other
            keep = left < right
            yield left[keep], right[keep]


def _near(
    index: SearchIndex, rows: dict[str, list[Any]], vectors: Array, threshold: float
) -> Iterator[tuple[Array, Array]]:
    """The same among each image's nearest, as the vector index finds them."""
    place = {name: row for row, name in enumerate(rows["_rowid"])}
    for row, vector in enumerate(vectors):
        names, scores = index.rows_near(vector, NEIGHBOURS)
        others = np.array([place[name] for name in names], dtype=np.int64)
        near = others[(scores >= threshold) & (others != row)]
        yield np.full(len(near), row), near


def _root(parent: Array, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _group(index: SearchIndex, rows: dict[str, list[Any]], vectors: Array, members: Iterable[int]) -> list[Duplicate]:
    def pixels(row: int) -> int:
        return (rows["width"][row] or 0) * (rows["height"][row] or 0)

    ordered = sorted(members, key=lambda row: (-pixels(row), rows["path"][row]))
    first = ordered[0]
    return [
        Duplicate(
            index.full_path(rows["path"][row]),
            round(float(vectors[row] @ vectors[first]), 6),
            rows["mmbert_content"][row] == rows["mmbert_content"][first],
            rows["width"][row],
            rows["height"][row],
        )
        for row in ordered
    ]
