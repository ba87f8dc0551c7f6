"""How fast and how exact is search among many vectors, against FAISS (HNSW and flat)?

N vectors of 256 numbers in 10,000 Gaussian clusters of intrinsic dimension 32, queries drawn independently from the
same clusters; top 10. Ours is a whole `SearchIndex` on disk (rows with captions and metadata come back), FAISS's are
bare vectors in memory. One query at a time, one after the other. Figures: `search_recall` (against exact search; FAISS
HNSW beside it), `search_p95_ms` (against HNSW and against flat), `search_build_s`, `search_disk_mb`, and
`search_memory_mb` (growth of the process from opening the index to the last query; FAISS: of building it). All
processes take the threads that the environment gives them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import pyarrow as pa
from _common import report

from mmbert.search import neighbours, store
from mmbert.search.index import SearchIndex
from mmbert.search.place import Place

SIZE, CLUSTERS, INTRINSIC, K = 256, 10_000, 32, 10
LOT = 50_000


class Collection:
    """Unit vectors in clusters on a random 32-dimensional subspace, with a little noise off it."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.centres = rng.standard_normal((CLUSTERS, INTRINSIC))
        self.basis = np.linalg.qr(rng.standard_normal((SIZE, INTRINSIC)))[0].T

    def draw(self, count: int, seed: int) -> np.ndarray:
        """[count, 256] float32."""
        rng = np.random.default_rng(seed)
        inside = self.centres[rng.integers(0, CLUSTERS, count)] + 0.6 * rng.standard_normal((count, INTRINSIC))
        rows = inside @ self.basis + 0.02 * rng.standard_normal((count, SIZE))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors")
    parser.add_argument("--size", type=int, default=1_000_000, help="number of vectors")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kind", default=None, choices=neighbours.KINDS, help="our vector index")
    args = parser.parse_args()
    size, queries = (20_000, 100) if args.quick else (args.size, args.queries)
    made = Collection()
    vectors, asked = made.draw(size, 1), made.draw(queries, 2)
    truth = exact(vectors, asked)
    folder = Path(tempfile.mkdtemp(prefix="mmbert-search-"))
    try:
        compare(vectors, asked, truth, folder, args.kind)
    finally:
        shutil.rmtree(folder)


def compare(vectors: np.ndarray, asked: np.ndarray, truth: np.ndarray, folder: Path, kind: str | None) -> None:
    flat = faiss.IndexFlatIP(SIZE)
    flat.add(vectors)
    hnsw, hnsw_build, hnsw_memory = measured(lambda: build_hnsw(vectors))
    index, build, _ = measured(lambda: build_ours(vectors, folder, kind))
    before = resident()
    recall, p95 = ask(lambda query: [hit.score for hit in index.nearest(query, k=K)], asked, truth)
    memory = resident() - before
    hnsw_recall, hnsw_p95 = ask(lambda query: hnsw.search(query[None], K)[0][0].tolist(), asked, truth)
    _, flat_p95 = ask(lambda query: flat.search(query[None], K)[0][0].tolist(), asked, truth)
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    used = index.about.neighbours
    about = "every vector"
    if used is not None:
        effort = used.effort(K)
        about = f"{used.kind}, {effort.probes} of {used.partitions} parts, x{effort.refine}"
    print(json.dumps({"vectors": len(vectors), "queries": len(asked), "ours": about}), flush=True)
    report("search_recall", recall, "recall@10", "FAISS HNSW32, ef 128", hnsw_recall, more_is_better=True)
    report("search_p95_ms", p95, "ms", "FAISS HNSW32, ef 128", hnsw_p95)
    report("search_p95_ms", p95, "ms", "FAISS flat", flat_p95)
    report("search_build_s", build, "s", "FAISS HNSW32, ef 128", hnsw_build)
    report("search_disk_mb", disk / 1e6, "MB", "the vectors alone", vectors.nbytes / 1e6)
    report("search_memory_mb", max(memory, 1e6) / 1e6, "MB", "FAISS HNSW32, ef 128", max(hnsw_memory, 1e6) / 1e6)


def build_hnsw(vectors: np.ndarray) -> Any:
    index = faiss.IndexHNSWFlat(SIZE, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.hnsw.efSearch = 128
    index.add(vectors)
    return index


def build_ours(vectors: np.ndarray, folder: Path, kind: str | None) -> SearchIndex:
    """What `build_index` does once the images are encoded: rows, vector index, tuning, tidying up."""
    place = Place(folder)
    about = store.About("synthetic", SIZE, None, None, "synthetic")
    table = store.open_for_writing(place, SIZE)
    for start in range(0, len(vectors), LOT):
        table.add(rows(vectors[start : start + LOT], start, table.schema))
    store.tidy_up(table)
    found = None
    if neighbours.is_stale(None, len(vectors), kind):
        kind = neighbours.choose_kind(len(vectors), kind)
        partitions = neighbours.train(table, kind, SIZE)
        sample = vectors[np.random.default_rng(3).choice(len(vectors), neighbours.TUNING_QUERIES, replace=False)]
        found = neighbours.tune(table, kind, partitions, sample, np.ones(len(sample), dtype=bool))
    store.complete(table)
    store.write_about(place, store.About(**{**about.__dict__, "neighbours": found}))
    return SearchIndex.open(folder)


def rows(vectors: np.ndarray, start: int, schema: pa.Schema) -> pa.Table:
    """Rows as `build_index` writes them, with a caption each."""
    count = len(vectors)
    numbers = range(start, start + count)
    sizes = np.random.default_rng(start).integers([320, 240, 20_000], [1_281, 961, 500_000], (count, 3))
    given = {
        "path": [f"{number:08}.jpg" for number in numbers],
        "id": [f"{number:08}" for number in numbers],
        "captions": [json.dumps({"en": [f"image number {number}"]}) for number in numbers],
        # As photographs have them: a column that is the same in all rows takes LanceDB longer to read (4 ms).
        "width": sizes[:, 0].tolist(),
        "height": sizes[:, 1].tolist(),
        "bytes": sizes[:, 2].tolist(),
    }
    columns = {
        name: pa.array(given.get(name, [None] * count), schema.field(name).type)
        for name in schema.names
        if name != "vector"
    }
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), SIZE)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def exact(vectors: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[queries] cosine of the tenth best."""
    best = np.full((len(asked), K), -1.0, dtype=np.float32)
    for start in range(0, len(vectors), 100_000):
        both = np.concatenate([best, asked @ vectors[start : start + 100_000].T], axis=1)
        best = np.partition(both, -K, axis=1)[:, -K:]
    return best.min(axis=1)


def ask(search: Callable[[np.ndarray], list[float]], asked: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Recall@10 by score, and the 95th percentile of milliseconds; the first queries warm up."""
    for query in asked[:20]:
        search(query)
    right, times = 0, []
    for query, tenth in zip(asked, truth, strict=True):
        start = time.perf_counter()
        scores = search(query)
        times.append(time.perf_counter() - start)
        right += int((np.array(scores) >= tenth - 1e-5).sum())
    return min(1.0, right / (K * len(asked))), 1000 * float(np.quantile(times, 0.95))


def measured(make: Callable[[], Any]) -> tuple[Any, float, int]:
    """What ``make`` makes, its seconds, and how many bytes the process has grown."""
    before, start = resident(), time.perf_counter()
    made = make()
    return made, time.perf_counter() - start, resident() - before


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
