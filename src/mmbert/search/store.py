"""The index on disk: a LanceDB table of vectors and a small JSON file that says what they are.

Writers commit lot after lot; readers see only the version that the tag ``complete`` names. A build that was killed
therefore changes nothing for readers, and the next one goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.index import IvfFlat

from mmbert import __version__
from mmbert.errors import IndexStoreError

FORMAT = 1
ABOUT = "mmbert-index.json"
TABLE = "images"
COMPLETE = "complete"
RESERVED = frozenset({"path", "id", "split", "captions", "vector", "image"})
PRIVATE = "mmbert_"
"""Columns that begin so are the index's own."""

EXACT_BELOW = 100_000
"""Up to so many rows every vector is compared; above, an IVF index narrows the choice."""

FAULTS = (RuntimeError, ValueError, OSError, TypeError)  # what LanceDB raises on anything wrong


@dataclass(frozen=True)
class About:
    """What the vectors of an index are.

    Args:
        fingerprint: of the model that made them.
        size: their width.
        model: name or folder of that model, where known.
        root: folder that paths are relative to; None for a corpus that holds its images itself.
        source: the corpus as it was named.
    """

    fingerprint: str
    size: int
    model: str | None
    root: str | None
    source: str
    format: int = FORMAT
    mmbert: str = __version__


def schema(size: int) -> pa.Schema:
    """Columns that every index has; those of the metadata come on top."""
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("split", pa.string()),
            pa.field("captions", pa.string()),  # JSON: {language: [caption, ...]}
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("bytes", pa.int64()),
            pa.field("image", pa.binary()),  # encoded, where the corpus has no files
            pa.field("mmbert_content", pa.string()),  # hash of the image's bytes
            pa.field("mmbert_words", pa.string()),  # hash of everything else about the record
            pa.field("vector", pa.list_(pa.float32(), size)),
        ]
    )


def read_about(path: Path) -> About:
    """What the index at ``path`` holds.

    Raises:
        IndexStoreError: no index there, damaged, or of a newer version of mm-bert.
    """
    file = path / ABOUT
    if not file.is_file():
        what = "is not an index" if path.exists() else "no such index"
        raise IndexStoreError(what, where=str(path), hint="make one: mmbert index FOLDER --out INDEX")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        newer = values["format"] > FORMAT
        about = None if newer else About(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IndexStoreError(f"damaged: {error}", where=str(file), hint=_again(path)) from error
    if about is None:
        raise IndexStoreError(
            f"made by a newer mm-bert ({values.get('mmbert')})", where=str(path), hint="upgrade, or index again"
        )
    return about


def write_about(path: Path, about: About) -> None:
    """Write it so that a reader sees the old or the new one, never half of it."""
    part = path / (ABOUT + ".part")
    part.write_text(json.dumps(asdict(about), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path / ABOUT)


def open_complete(path: Path) -> Any:
    """The table as the last finished build left it.

    Raises:
        IndexStoreError: damaged, or no build has finished yet.
    """
    with faults(path):
        table = _open(path)
        tags = table.tags.list() if table is not None else {}
        if COMPLETE in tags:
            table.checkout(COMPLETE)
            return table
    raise IndexStoreError("the index is not finished", where=str(path), hint="run the same mmbert index command again")


def open_for_writing(path: Path, size: int) -> Any:
    """The table with everything committed so far, new if there is none."""
    with faults(path):
        table = _open(path)
        if table is not None:
            return table
        shutil.rmtree(path / f"{TABLE}.lance", ignore_errors=True)  # what a build left that was killed too early
        return lancedb.connect(path).create_table(TABLE, schema=schema(size))


def _open(path: Path) -> Any:
    """The table at its latest version; None where no version has been committed."""
    if not any((path / f"{TABLE}.lance" / "_versions").glob("*.manifest")):
        return None
    return lancedb.connect(path).open_table(TABLE)


def is_complete(table: Any) -> bool:
    """Whether readers see the latest version."""
    tags = table.tags.list()
    return COMPLETE in tags and int(tags[COMPLETE]["version"]) == int(table.version)


def complete(table: Any) -> None:
    """Tidy up and show the latest version to readers."""
    never = timedelta(days=36_500)
    rows = table.count_rows()
    if rows >= EXACT_BELOW and not table.list_indices():
        table.create_index("vector", config=IvfFlat(distance_type="cosine"))
    table.optimize(cleanup_older_than=never)  # few large files instead of one per lot; new rows enter the vector index
    _show(table)
    # Whoever has the index open goes on reading the version before; an hour on, its files may go.
    table.optimize(cleanup_older_than=timedelta(hours=1))
    if not is_complete(table):
        _show(table)


def _show(table: Any) -> None:
    tags = table.tags
    (tags.update if COMPLETE in tags.list() else tags.create)(COMPLETE, table.version)


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """LanceDB's errors while reading as ``IndexStoreError``."""
    try:
        yield
    except FAULTS as error:
        raise IndexStoreError(f"damaged: {first_line(error)}", where=str(path), hint=_again(path)) from error


@contextmanager
def write_faults(path: Path) -> Iterator[None]:
    """LanceDB's errors while writing as ``IndexStoreError``."""
    try:
        yield
    except FAULTS as error:
        hint = f"is the disk full or read-only? if not, {_again(path)}"
        raise IndexStoreError(f"cannot be written: {first_line(error)}", where=str(path), hint=hint) from error


def first_line(error: Exception) -> str:
    """The telling part of a LanceDB message: without the place in its source."""
    lines = str(error).strip().splitlines()
    return lines[0].split(", /")[0] if lines else type(error).__name__


def _again(path: Path) -> str:
    return f"delete {path} and index again"
