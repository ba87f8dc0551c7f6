"""Vector indexes: tuned settings reach the recall that they say, against a search that compares everything."""

from __future__ import annotations

from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from mmbert.errors import UsageError
from mmbert.search import neighbours


def clustered(rng: np.random.Generator, count: int, size: int = 64) -> np.ndarray:
    centres = np.random.default_rng(1).standard_normal((40, size))
    rows = centres[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(0), 3000)


@pytest.fixture
def table(vectors: np.ndarray, tmp_path: Path) -> object:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return lancedb.connect(tmp_path).create_table("t", pa.table({"n": pa.array(range(len(vectors))), "vector": column}))


def test_exact_top_is_what_a_matrix_product_says(table: object, vectors: np.ndarray) -> None:
    queries = clustered(np.random.default_rng(2), 7)
    scores, ids = neighbours.exact_top(table, queries, 5)
    expected = np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :5]
    assert scores == pytest.approx(expected, abs=1e-5)
    rows = table.take_row_ids(ids[0].tolist()).to_arrow()["n"].to_pylist()  # type: ignore[attr-defined]
    assert set(rows) == set(np.argsort(-(queries[0] @ vectors.T))[:5].tolist())


@pytest.mark.parametrize("kind", ["flat", "sq", "rq"])
def test_tuned_settings_find_on_other_queries_what_they_promise(table: object, vectors: np.ndarray, kind: str) -> None:
    partitions = neighbours.train(table, kind, 64)
    assert partitions == 55
    queries = np.concatenate([clustered(np.random.default_rng(3), 20), vectors[:20]])
    tuned = neighbours.tune(table, kind, partitions, queries, np.arange(40) >= 20)
    assert tuned.recall >= neighbours.TARGET
    found = right = 0
    for query in clustered(np.random.default_rng(4), 20):
        ask = table.search(query).distance_type("cosine").select(["n", "_distance"]).limit(10)  # type: ignore[attr-defined]
        names = set(tuned.ask(ask, 10).to_arrow()["n"].to_pylist())
        right += len(names & set(np.argsort(-(vectors @ query))[:10].tolist()))
        found += 10
    assert right / found >= 0.95


def test_one_probe_of_many_would_not_do(table: object, vectors: np.ndarray) -> None:
    """The recall that tuning measures can be low: it is no constant."""
    partitions = neighbours.train(table, "flat", 64)
    poor = neighbours.Neighbours("flat", 3000, partitions, 1, 1, 0.0, 20)
    queries = np.random.default_rng(3).normal(size=(20, vectors.shape[1])).astype(np.float32)  # between the clusters
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    truth, _ = neighbours.exact_top(table, queries, 51)
    assert neighbours._recall(table, poor, queries, np.zeros(20, dtype=bool), truth) < 0.9


def test_when_an_index_is_built_anew() -> None:
    tuned = neighbours.Neighbours("sq", 200_000, 447, 8, 2, 0.99, 128)
    assert not neighbours.is_stale(None, 99_999, None)
    assert neighbours.is_stale(None, 100_000, None)
    assert neighbours.is_stale(None, 10, "flat")
    assert not neighbours.is_stale(tuned, 400_000, None)
    assert neighbours.is_stale(tuned, 400_001, None)
    assert neighbours.is_stale(tuned, 200_000, "rq")
    assert [neighbours.choose_kind(rows) for rows in (10, 4_999_999, 5_000_000)] == ["sq", "sq", "rq"]
    with pytest.raises(UsageError, match="unknown kind of vector index 'hnws'"):
        neighbours.choose_kind(1, "hnws")
