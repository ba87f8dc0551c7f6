"""The index on disk: a LanceDB table of vectors and a small JSON file that says what they are.

Writers commit lot after lot; readers see only the version that the tag ``complete`` names. A build that was killed
therefore changes nothing for readers, and the next one goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import lancedb
import pyarrow as pa

from mmbert import __version__
from mmbert.errors import IndexStoreError
from mmbert.search.calibration import Calibration
from mmbert.search.neighbours import Neighbours
from mmbert.search.place import Place

FORMAT = 3
ABOUT = "mmbert-index.json"
TABLE = "images"
COMPLETE = "complete"
RESERVED = frozenset({"path", "id", "split", "captions", "vector", "image"})
MEASURED = frozenset({"width", "height", "bytes"})
"""Columns that the index fills itself; what metadata say of the same (files like COCO's do) is left out."""
PRIVATE = "mmbert_"
"""Columns that begin so are the index's own."""
REGIONS = PRIVATE + "regions"
"""Column of embedded regions (fp16, one image's after the other), in an index that keeps them."""

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
        regions: embedded regions per image that are kept for re-ranking; 0 where none are.
        neighbours: the index over the vectors and how it is asked; None where all of them are compared.
        calibration: from a text query's score to a probability; None where it could not be learned.
    """

    fingerprint: str
    size: int
    model: str | None
    root: str | None
    source: str
    format: int = FORMAT
    mmbert: str = __version__
    regions: int = 0
    neighbours: Neighbours | None = None
    calibration: Calibration | None = None


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
            pa.field(REGIONS, pa.binary()),
            pa.field("vector", pa.list_(pa.float32(), size)),
        ]
    )


def read_about(place: Place) -> About:
    """What the index at ``place`` holds.

    Raises:
        IndexStoreError: no index there, damaged, or of a newer version of mm-bert.
    """
    if not place.is_file(ABOUT):
        what = "is not an index" if place.exists() else "no such index"
        raise IndexStoreError(what, where=str(place), hint="make one: mmbert index FOLDER --out INDEX")
    try:
        values = json.loads(place.read(ABOUT))
        newer = values["format"] > FORMAT
        about = None if newer else _about(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexStoreError(f"damaged: {error}", where=f"{place}/{ABOUT}", hint=_again(place)) from error
    if about is None:
        raise IndexStoreError(
            f"made by a newer mm-bert ({values.get('mmbert')})", where=str(place), hint="upgrade, or index again"
        )
    return about


def _about(values: dict[str, Any]) -> About:
    learned: dict[str, Any] = {}
    if values.get("neighbours") is not None:
        learned["neighbours"] = Neighbours.from_json(values["neighbours"])
    if values.get("calibration") is not None:
        learned["calibration"] = Calibration(**values["calibration"])
    return About(**(values | learned))


def write_about(place: Place, about: About) -> None:
    """Write it so that a reader sees the old or the new one, never half of it."""
    place.write(ABOUT, json.dumps(asdict(about), indent=1, ensure_ascii=False) + "\n")


def open_complete(place: Place) -> Any:
    """The table as the last finished build left it.

    Raises:
        IndexStoreError: damaged, or no build has finished yet.
    """
    with faults(place):
        table = _open(place)
        tags = table.tags.list() if table is not None else {}
        if COMPLETE in tags:
            table.checkout(COMPLETE)
            return table
    raise IndexStoreError("the index is not finished", where=str(place), hint="run the same mmbert index command again")


def complete_version(place: Place) -> int | None:
    """Number of the version that readers see now; None where it cannot be told."""
    try:
        table = _open(place)
        return None if table is None else int(table.tags.list()[COMPLETE]["version"])
    except (*FAULTS, KeyError):
        return None


def open_for_writing(place: Place, size: int) -> Any:
    """The table with everything committed so far, new if there is none."""
    with faults(place):
        table = _open(place)
        if table is not None:
            if REGIONS not in table.schema.names:  # made by format 1
                table.add_columns(pa.schema([pa.field(REGIONS, pa.binary())]))
            return table
        place.remove(f"{TABLE}.lance")  # what a build left that was killed too early
        return lancedb.connect(place.uri).create_table(TABLE, schema=schema(size))


def _open(place: Place) -> Any:
    """The table at its latest version; None where no version has been committed."""
    if not place.has(f"{TABLE}.lance/_versions/*.manifest"):
        return None
    return lancedb.connect(place.uri).open_table(TABLE)


def is_complete(table: Any) -> bool:
    """Whether readers see the latest version."""
    tags = table.tags.list()
    return COMPLETE in tags and int(tags[COMPLETE]["version"]) == int(table.version)


def tidy_up(table: Any) -> None:
    """Few large files instead of one per lot; new rows enter the vector index. Nothing is removed."""
    table.optimize(cleanup_older_than=timedelta(days=36_500))


def complete(table: Any) -> None:
    """Show the latest version, tidied up before, to readers."""
    _show(table)
    # Whoever has the index open goes on reading the version before; an hour on, its files may go.
    table.optimize(cleanup_older_than=timedelta(hours=1))
    if not is_complete(table):
        _show(table)


def _show(table: Any) -> None:
    tags = table.tags
    (tags.update if COMPLETE in tags.list() else tags.create)(COMPLETE, table.version)


@contextmanager
def faults(place: Place) -> Iterator[None]:
    """LanceDB's errors while reading as ``IndexStoreError``."""
    try:
        yield
    except FAULTS as error:
        raise IndexStoreError(f"damaged: {first_line(error)}", where=str(place), hint=_again(place)) from error


@contextmanager
def write_faults(place: Place) -> Iterator[None]:
    """LanceDB's errors while writing as ``IndexStoreError``."""
    try:
        yield
    except FAULTS as error:
        hint = f"is the disk full or read-only? if not, {_again(place)}"
        raise IndexStoreError(f"cannot be written: {first_line(error)}", where=str(place), hint=hint) from error


def first_line(error: Exception) -> str:
    """The telling part of a LanceDB message: without the place in its source."""
    lines = str(error).strip().splitlines()
    return lines[0].split(", /")[0] if lines else type(error).__name__


_SYNTAX = re.compile(r"\(sql parser error: (.*)\)$")


def against_condition(error: Exception) -> str:
    """What LanceDB has against a condition: without the statement that it makes of it, and our inner columns."""
    said = first_line(error).split(". Valid fields are ")[0]
    if syntax := _SYNTAX.search(said):
        said = syntax[1]
    said = said.removeprefix("Invalid input, ").removeprefix("Schema error: ")
    return textwrap.shorten(said, 200, placeholder=" …")


def _again(place: Place) -> str:
    return f"delete {place} and index again"
