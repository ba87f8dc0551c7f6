"""Vector indexes: tuned settings reach the recall that they say, against a search that compares everything."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from mmbert.errors import UsageError
from mmbert.search import neighbours, store


def clustered(rng: np.random.Generator, count: int, size: int = 64) -> np.ndarray:
    centres = np.random.default_rng(1).standard_normal((40, size))
    rows = centres[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS_OF_A_PART", 55)


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
    assert [effort.depth for effort in tuned.efforts] == [10, 50]
    for depth in (10, 50):
        assert tuned.effort(depth).recall >= neighbours.TARGET
        found = right = 0
        for query in clustered(np.random.default_rng(4), 20):
            ask = table.search(query).distance_type("cosine").select(["n", "_distance"]).limit(depth)  # type: ignore[attr-defined]
            names = set(tuned.ask(ask, depth).to_arrow()["n"].to_pylist())
            right += len(names & set(np.argsort(-(vectors @ query))[:depth].tolist()))
            found += depth
        assert right / found >= 0.95


def test_to_find_few_takes_no_more_than_to_find_many(table: object, vectors: np.ndarray) -> None:
    """Queries between the clusters: their right ten are few parts away, their right fifty more."""
    partitions = neighbours.train(table, "sq", 64)
    queries = np.random.default_rng(3).normal(size=(40, vectors.shape[1])).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    few, many = neighbours.tune(table, "sq", partitions, queries, np.zeros(40, dtype=bool)).efforts
    assert few.probes <= many.probes
    assert neighbours.Neighbours("sq", 1, 1, (few, many), 1).effort(51) == many


def test_an_index_of_an_earlier_format_is_asked_as_it_was() -> None:
    old = {"kind": "sq", "rows": 9, "partitions": 3, "probes": 2, "refine": 5, "recall": 0.99, "queries": 4}
    found = neighbours.Neighbours.from_json(old)
    assert {(e.probes, e.refine, e.recall) for e in found.efforts} == {(2, 5, 0.99)}
    assert neighbours.Neighbours.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_one_probe_of_many_would_not_do(table: object, vectors: np.ndarray) -> None:
    """The recall that tuning measures can be low: it is no constant."""
    neighbours.train(table, "flat", 64)
    poor = neighbours.Effort(50, 1, 1)
    queries = np.random.default_rng(3).normal(size=(20, vectors.shape[1])).astype(np.float32)  # between the clusters
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    truth, _ = neighbours.exact_top(table, queries, 51)
    assert neighbours._recall(table, "flat", poor, queries, np.zeros(20, dtype=bool), truth) < 0.9


def test_when_an_index_is_built_anew() -> None:
    tuned = neighbours.Neighbours("sq", 200_000, 447, (neighbours.Effort(10, 8, 2, 0.99),), 128)
    assert not neighbours.is_stale(None, 99_999, None)
    assert neighbours.is_stale(None, 100_000, None)
    assert neighbours.is_stale(None, 10, "flat")
    assert not neighbours.is_stale(tuned, 400_000, None)
    assert neighbours.is_stale(tuned, 400_001, None)
    assert neighbours.is_stale(tuned, 200_000, "rq")
    assert [neighbours.choose_kind(rows) for rows in (10, 4_999_999, 5_000_000)] == ["sq", "sq", "rq"]
    with pytest.raises(UsageError, match="unknown kind of vector index 'hnws'"):
        neighbours.choose_kind(1, "hnws")


def test_tidying_up_leaves_the_parts_that_were_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LanceDB merges small parts; the plan of a query says how many there are."""
    monkeypatch.undo()
    rows = 2 * neighbours.ROWS_OF_A_PART
    vectors = clustered(np.random.default_rng(5), rows, 8)
    table = lancedb.connect(tmp_path).create_table(
        "t", schema=pa.schema([pa.field("vector", pa.list_(pa.float32(), 8))])
    )
    for lot in np.array_split(vectors, 5):
        column = pa.FixedSizeListArray.from_arrays(pa.array(lot.ravel()), 8)
        table.add(pa.table([column], schema=table.schema))
    store.tidy_up(table)
    assert neighbours.train(table, "sq", 8) == 2
    store.complete(table)
    ask = table.search(vectors[0], vector_column_name="vector").distance_type("cosine").select(["_distance"])
    assert "partitions_ranked=2" in ask.limit(5).nprobes(99).analyze_plan()
