"""A prepared store of many small shards on a file system that is not local."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import pytest

from mmbert.data import shards
from mmbert.data.corpus import FORMAT
from mmbert.data.records import Record
from mmbert.data.shards import ShardWriter


def write_store(
    folder: Path, splits: Mapping[str, Sequence[Record]], monkeypatch: pytest.MonkeyPatch, rows: int = 5
) -> Path:
    """A store whose shards hold ``rows`` records each."""
    folder.mkdir()
    about: dict[str, object] = {"format": FORMAT, "corpus": "tests", "options": {}, "images": None}
    made = {}
    with monkeypatch.context() as patch:
        patch.setattr(shards, "BATCH_ROWS", rows)
        for split, records in splits.items():
            writer = ShardWriter(folder, split, shard_bytes=1)
            for record in records:
                writer.add(record, None)
            languages = list(dict.fromkeys(code for record in records for code in record.languages))
            kept = [{"file": s.file, "rows": s.rows, "bytes": s.bytes, "sha256": s.sha256} for s in writer.close()]
            made[split] = {"languages": languages, "shards": kept}
    (folder / "corpus.json").write_text(json.dumps(about | {"splits": made}))
    return folder


def uploaded(store: Path, name: str) -> str:
    """The store, copied into memory; its URL."""
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)
    files.makedirs(f"/{name}")
    for path in store.iterdir():
        files.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return f"memory://{name}"
