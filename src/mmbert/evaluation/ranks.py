"""Ranks: scores go in, the rank of each query's best right answer and recall at k come out.

Works on blocks of scores, so that a whole ``n_texts x n_images`` matrix never has to exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from mmbert.errors import DataError

Array: TypeAlias = np.ndarray[Any, Any]
Report: TypeAlias = dict[str, dict[str, dict[str, float]]]
Block: TypeAlias = Callable[[int, int], Array]
"""``block(start, stop)``: the score rows of those queries."""

CUTOFFS = (1, 5, 10)
NO_ANSWER = 0
"""Rank of a query that has no right answer in the gallery: it is left out of every figure."""
BLOCK_ELEMENTS = 1 << 23
"""Scores in one block: 32 MB as float32, and a few times that while it is ranked."""


def ranks(scores: Array, query_group: Array, gallery_group: Array) -> Array:
    """Rank of the best right answer to each query.

    A gallery item is right when its group is the query's. Wrong items with the same score as the best right one count
    as ranked before it, so that a model which scores everything alike comes out last and not first.

    Args:
        scores: ``[queries, gallery]``, higher is better.
        query_group: ``[queries]`` integers.
        gallery_group: ``[gallery]`` integers.

    Returns:
        ``[queries]`` int64, 1 is best; ``NO_ANSWER`` where the gallery holds no right item.

    Raises:
        DataError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise DataError("scores are not numbers (NaN)", hint="the model's weights are damaged or its training diverged")
    right = query_group[:, None] == gallery_group[None, :]
    best = np.where(right, scores, -np.inf).max(axis=1, initial=-np.inf)
    ahead = ((scores >= best[:, None]) & ~right).sum(axis=1)
    return np.where(right.any(axis=1), ahead + 1, NO_ANSWER)


def ranks_by_block(block: Block, query_group: Array, gallery_group: Array, *, elements: int = BLOCK_ELEMENTS) -> Array:
    """``ranks`` of scores that ``block`` computes when they are needed."""
    found = np.zeros(len(query_group), dtype=np.int64)
    for start, stop in spans(len(query_group), len(gallery_group), elements):
        found[start:stop] = ranks(block(start, stop), query_group[start:stop], gallery_group)
    return found


def spans(rows: int, columns: int, elements: int = BLOCK_ELEMENTS) -> Iterable[tuple[int, int]]:
    """Cut ``rows`` into consecutive ranges of at most ``elements`` scores each (at least one row)."""
    step = max(1, elements // max(1, columns))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def figures(found: Array) -> dict[str, float] | None:
    """Recall at 1, 5 and 10 (fractions) and the median rank; None when no query has an answer."""
    answered = found[found != NO_ANSWER]
    if not len(answered):
        return None
    recall = {f"R@{k}": float((answered <= k).mean()) for k in CUTOFFS}
    return recall | {"median_rank": float(np.median(answered))}


def report(text_to_image: Mapping[str, Array], image_to_text: Mapping[str, Array]) -> Report:
    """Ranks by language -> the report: figures per language, and their unweighted mean over languages first.

    Raises:
        DataError: no query of a direction has an answer.
    """
    return {"text_to_image": _direction(text_to_image), "image_to_text": _direction(image_to_text)}


def _direction(by_language: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    languages = {language: found for language in sorted(by_language) if (found := figures(by_language[language]))}
    if not languages:
        raise DataError("no text belongs to any of the images: nothing to evaluate")
    names = next(iter(languages.values()))
    mean = {name: float(np.mean([values[name] for values in languages.values()])) for name in names}
    return {"mean": mean, **languages}


def as_numbers(groups: Iterable[Any]) -> tuple[Array, dict[Any, int]]:
    """Any hashable group names -> integers in order of first appearance, and which name got which."""
    numbers: dict[Any, int] = {}
    return np.asarray([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64), numbers
