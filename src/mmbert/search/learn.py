"""What a finished index learns from itself: queries to tune its vector index with, and the calibration of its scores.

Both are asked of the captions that the index holds (a text query is what people type), and of its own images where
there are none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mmbert.search import calibration
from mmbert.search.calibration import Calibration
from mmbert.search.neighbours import TUNING_QUERIES, exact_top

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

Array: TypeAlias = np.ndarray[Any, Any]


def tuning_queries(model: MMBert, table: Any, count: int = TUNING_QUERIES, seed: int = 0) -> tuple[Array, Array]:
    """Queries for tuning: half of them captions where there are any, the others images.

    Returns:
        [n, D] unit vectors, and [n] whether each is itself in the table.
    """
    rows = _sample(table, count, seed, ["captions", "vector"])
    vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    texts = [said for said in _one_caption(rows["captions"].to_pylist(), seed)[: count // 2] if said is not None]
    own = np.zeros(len(vectors), dtype=bool)
    own[len(texts) :] = True
    if texts:
        vectors[: len(texts)] = model.encode_text([text for _, text in texts])
    return vectors.astype(np.float32), own


def learn_calibration(model: MMBert, table: Any, seed: int = 0) -> Calibration | None:
    """From captions of random images: a hit is right when it has the caption itself."""
    rows = _sample(table, calibration.QUERIES, seed, ["captions"])
    asked = [said for said in _one_caption(rows["captions"].to_pylist(), seed) if said is not None]
    if len(asked) < calibration.ENOUGH:
        return None
    queries = model.encode_text([text for _, text in asked])
    scores, ids = exact_top(table, queries, min(calibration.HITS, int(table.count_rows())))
    distinct, place = np.unique(ids, return_inverse=True)
    found = table.take_row_ids(distinct.tolist()).with_row_id().select(["captions"]).to_arrow()
    said = dict(zip(found["_rowid"].to_pylist(), map(json.loads, found["captions"].to_pylist()), strict=True))
    captions = [said[row] for row in distinct.tolist()]
    right = np.array(
        [
            [text in captions[hit].get(language, ()) for hit in hits]
            for (language, text), hits in zip(asked, place.reshape(ids.shape), strict=True)
        ]
    )
    return calibration.calibrate(scores, right)


def _sample(table: Any, count: int, seed: int, columns: list[str]) -> Any:
    """Some random rows of the table, the same every time."""
    rows = int(table.count_rows())
    chosen = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
    return table.take_offsets(np.sort(chosen).tolist()).select(columns).to_arrow()


def _one_caption(captions: list[str], seed: int) -> list[tuple[str, str] | None]:
    """(language, caption) of each row, drawn at random; None where it has none. Those with one come first."""
    rng = np.random.default_rng(seed)
    drawn: list[tuple[str, str] | None] = []
    for line in captions:
        said = [(language, text) for language, texts in json.loads(line).items() for text in texts]
        drawn.append(said[int(rng.integers(len(said)))] if said else None)
    return sorted(drawn, key=lambda one: one is None)
