"""Nearest neighbours among many vectors: an approximate index is built over them and tuned against exact search.

Input: a LanceDB table of unit vectors. Output: the same table with a vector index, and how to ask it so that it finds
what an exact search finds (recall), measured on queries like those that will come.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import Any, Literal, TypeAlias

import numpy as np

from mmbert.errors import UsageError

Array: TypeAlias = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["flat", "sq", "rq", "pq", "hnsw"]
KINDS: tuple[Kind, ...] = ("flat", "sq", "rq", "pq", "hnsw")

EXACT_BELOW = 100_000
"""Up to so many rows every vector is compared; above, an index narrows the choice."""
SMALL_BELOW = 5_000_000
"""Up to so many rows a byte per number (``sq``) is kept in memory; above, a bit (``rq``)."""
ROWS_OF_A_PART = 4_500
"""When LanceDB tidies a table up, it rewrites an index whose parts are small into parts of 32,768 rows (1,000 parts of
1,000 rows became 31, 24 of 4,100 stayed), and what was tuned would not hold any more."""
MOST_PARTS = 4_096
GROWTH = 2.0
"""An index is trained anew when the table has grown by this factor; until then new rows join its parts."""
TARGET = 0.96
"""Recall that tuning looks for: nineteen of twenty with something to spare for queries that it has not seen."""
DEPTHS = (10, 50)
"""Recall is measured at these: what is shown, and what is re-ranked."""
TUNING_QUERIES = 128
TIE = 1e-6


@dataclass(frozen=True)
class Effort:
    """What it takes to find up to so many neighbours.

    Args:
        depth: how many.
        probes: parts that a query looks at.
        refine: so many times the wanted number are compared again by their full vectors.
        recall: measured with these settings.
    """

    depth: int
    probes: int
    refine: int
    recall: float = 0.0


@dataclass(frozen=True)
class Neighbours:
    """A vector index and how it is asked.

    Args:
        kind: ``flat`` (vectors as they are), ``sq`` (a byte per number), ``rq`` (a bit per number; RaBitQ, Gao and
            Long, 2024), ``pq`` (product quantisation, Jégou et al., 2011) or ``hnsw`` (a graph in each part, Malkov
            and Yashunin, 2020); all of them split the vectors into ``partitions`` (IVF).
        rows: of the table when it was trained.
        partitions: parts.
        efforts: by rising depth; to find more than the last says is asked for as the last says.
        queries: on which recall was measured.
    """

    kind: str
    rows: int
    partitions: int
    efforts: tuple[Effort, ...]
    queries: int

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Neighbours:
        """What ``dataclasses.asdict`` gave; indexes before format 3 have one effort for all depths."""
        values = dict(values)
        if "efforts" not in values:
            one = {name: values.pop(name) for name in ("probes", "refine", "recall")}
            values["efforts"] = [{"depth": depth, **one} for depth in DEPTHS]
        efforts = tuple(Effort(**effort) for effort in values.pop("efforts"))
        return cls(**values, efforts=efforts)

    def effort(self, count: int) -> Effort:
        """That finds ``count`` neighbours."""
        return next((effort for effort in self.efforts if count <= effort.depth), self.efforts[-1])

    def ask(self, query: Any, count: int) -> Any:
        """Give a LanceDB query for ``count`` neighbours these settings."""
        return _with(query, self.kind, self.effort(count), count)


def _with(query: Any, kind: str, effort: Effort, count: int) -> Any:
    query = query.nprobes(effort.probes).refine_factor(effort.refine)
    return query.ef(max(2 * count, 100)) if kind == "hnsw" else query


def choose_kind(rows: int, kind: str | None = None) -> str:
    """``kind``, checked; where None, the one that fits so many rows.

    Raises:
        UsageError: there is no such kind.
    """
    if kind is None:
        return "sq" if rows < SMALL_BELOW else "rq"
    if kind not in KINDS:
        raise UsageError(f"unknown kind of vector index {kind!r}", hint=f"known: {', '.join(KINDS)}")
    return kind


def is_stale(neighbours: Neighbours | None, rows: int, kind: str | None) -> bool:
    """Whether the vectors need an index, or another one, than they have."""
    if neighbours is None:
        return kind is not None or rows >= EXACT_BELOW
    return (kind is not None and kind != neighbours.kind) or rows > GROWTH * neighbours.rows


def train(table: Any, kind: str, size: int) -> int:
    """Build the vector index of a table; gives its number of parts."""
    from lancedb import index

    partitions = max(1, min(MOST_PARTS, round(table.count_rows() / ROWS_OF_A_PART)))
    options: dict[str, Any] = {"distance_type": "cosine", "num_partitions": partitions, "max_iterations": 20}
    if kind != "hnsw":
        options["sample_rate"] = 64
    if kind == "pq":
        if size % 8:
            raise UsageError(f"pq needs vectors of a multiple of 8 numbers, not {size}", hint="take another kind")
        options["num_sub_vectors"] = size // 4
    kinds = {"flat": index.IvfFlat, "sq": index.IvfSq, "rq": index.IvfRq, "pq": index.IvfPq, "hnsw": index.HnswSq}
    table.create_index("vector", config=kinds[kind](**options), replace=True)
    return partitions


def exact_top(table: Any, queries: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` best rows for each query, by comparing all of them in one pass over the table.

    Args:
        queries: [n, D] unit vectors.
        k: at most the number of rows.

    Returns:
        [n, k] cosines, best first, and [n, k] row ids.
    """
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    ids = np.zeros((len(queries), k), dtype=np.uint64)
    rows = table.search().select(["vector"]).with_row_id(True).limit(max(1, table.count_rows()))
    for batch in rows.to_batches():
        column = batch.column(batch.schema.get_field_index("vector"))
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
        norms = np.linalg.norm(vectors, axis=1).clip(1e-12)
        both = np.concatenate([scores, (queries @ vectors.T) / norms], axis=1)
        found = batch.column(batch.schema.get_field_index("_rowid")).to_numpy()
        names = np.concatenate([ids, np.broadcast_to(found, (len(queries), len(found)))], axis=1)
        best = np.argpartition(-both, k - 1, axis=1)[:, :k]
        scores, ids = np.take_along_axis(both, best, 1), np.take_along_axis(names, best, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def tune(table: Any, kind: str, partitions: int, queries: Array, own: Array, *, target: float = TARGET) -> Neighbours:
    """The cheapest settings that reach ``target`` at each of ``DEPTHS``, or the best there are.

    Args:
        queries: [n, D] unit vectors like those that will be asked.
        own: [n] whether the query is itself in the table; it is then not counted among its neighbours.
        target: recall.
    """
    rows = int(table.count_rows())
    truth, _ = exact_top(table, queries, min(max(DEPTHS) + 1, rows))
    efforts: list[Effort] = []
    for depth in DEPTHS:
        best = Effort(depth, 0, 0, -1.0)
        for probes, refine in product(_ladder(partitions), (1,) if kind == "flat" else (2, 5, 20)):
            if efforts and probes < efforts[-1].probes:
                continue  # to find more never takes less
            tried = Effort(depth, probes, refine)
            tried = replace(tried, recall=round(_recall(table, kind, tried, queries, own, truth), 4))
            best = max(best, tried, key=lambda effort: effort.recall)
            if best.recall >= target:
                break
        efforts.append(best)
    return Neighbours(kind, rows, partitions, tuple(efforts), len(queries))


def _ladder(partitions: int) -> list[int]:
    """1 % of the parts (at least 4), a quarter more each time until it is all of them."""
    steps, probes = [], max(4, ceil(partitions / 100))
    while probes < partitions:
        steps.append(probes)
        probes = ceil(1.25 * probes)
    return [*steps, partitions]


def _recall(table: Any, kind: str, tried: Effort, queries: Array, own: Array, truth: Array) -> float:
    """Recall at the effort's depth. Judged by score, so that of equal ones any counts."""
    hits = total = 0
    for query, itself, best in zip(queries, own.astype(int), truth, strict=True):
        k = min(tried.depth + int(itself), truth.shape[1])
        ask = table.search(query, vector_column_name="vector").distance_type("cosine").select(["_distance"])
        found = 1.0 - _with(ask.limit(k), kind, tried, k).to_arrow()["_distance"].to_numpy()
        hits += int((found >= best[k - 1] - TIE).sum()) - int(itself)
        total += k - int(itself)
    return hits / max(1, total)
