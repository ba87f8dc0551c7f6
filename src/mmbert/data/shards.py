"""Records as Arrow files: the columns, writing records into shards, and reading one record of a mapped shard.

The Arrow file format rather than Parquet, because training reads records in random order: a row of a mapped file costs
microseconds and no memory of its own, where Parquet would have to decode a whole row group.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmbert.data.records import ImageRef, Record, RegionBox
from mmbert.errors import DataError

BATCH_ROWS = 1000
BATCH_BYTES = 64_000_000
"""Of images in one batch: an Arrow column of bytes ends at 2 GB."""
SHARD_BYTES = 256_000_000

_SAID = pa.map_(pa.string(), pa.list_(pa.string()))
_BOX = pa.struct(
    [
        *((side, pa.float64()) for side in ("x1", "y1", "x2", "y2")),
        ("name", pa.string()),
        ("polygons", pa.list_(pa.list_(pa.float64()))),
        ("score", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("image", pa.string()),  # path, relative to the store's image folder where it is below it
        ("image_data", pa.binary()),  # or the encoded image
        ("image_key", pa.string()),  # where it is not the path of the image
        ("captions", _SAID),
        ("texts", _SAID),
        ("split", pa.string()),
        ("group", pa.string()),  # where it is not the id
        ("extra", pa.string()),  # JSON
        ("annotation", pa.string()),  # JSON
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("boxes", pa.list_(_BOX)),
        ("regions", pa.string()),
        ("origin", pa.string()),
    ]
)
"""Columns of a shard; an absent value is null."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a store: its name, rows, bytes and checksum."""

    file: str
    rows: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes records into ``<folder>/<name>-00000.arrow`` and so on; only one batch is held in memory.

    Args:
        folder: exists.
        name: of the split.
        shard_bytes: a file that has grown beyond this is followed by the next.
    """

    def __init__(self, folder: Path, name: str, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.shards: list[Shard] = []
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._rows: list[dict[str, Any]] = []
        self._pixels = 0
        self._sink: Any = None
        self._writer: Any = None
        self._written = 0

    def add(self, record: Record, image: str | None) -> None:
        """Write one record; ``image`` is what to store as the path of its image."""
        self._rows.append(_row(record, image))
        self._pixels += len(self._rows[-1]["image_data"] or b"")
        if len(self._rows) >= BATCH_ROWS or self._pixels >= BATCH_BYTES:
            self._flush()

    def close(self) -> list[Shard]:
        """Finish the last file; all shards."""
        self._flush()
        self._finish()
        return self.shards

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._sink = pa.OSFile(str(self._path()), "wb")
            self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA))
        self._written += len(self._rows)
        self._rows, self._pixels = [], 0
        if self._sink.tell() >= self._shard_bytes:
            self._finish()

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._sink.close()
        path = self._path()
        self.shards.append(Shard(path.name, self._written, path.stat().st_size, checksum(path)))
        self._sink = self._writer = None
        self._written = 0

    def _path(self) -> Path:
        return self._folder / f"{self._name}-{len(self.shards):05d}.arrow"


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_shard(path: Path) -> list[pa.RecordBatch]:
    """The batches of a shard, mapped: nothing is read yet.

    Raises:
        DataError: the file is missing, damaged, or has other columns.
    """
    hint = "prepare the corpus again"
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()  # sizes and bounds; `mmbert data check` compares every byte
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"cannot be read: {str(error).splitlines()[0]}", where=str(path), hint=hint) from error
    if reader.schema != SCHEMA:
        raise DataError("does not hold records", where=str(path), hint=hint)
    return batches


def _row(record: Record, image: str | None) -> dict[str, Any]:
    ref, size = record.image, record.size or (None, None)
    return {
        "id": record.id,
        "image": image,
        "image_data": None if ref is None else ref.data,
        "image_key": None if ref is None or ref.key in (image, ref.path) else ref.key,
        "captions": {code: list(said) for code, said in record.captions.items()} or None,
        "texts": {code: list(said) for code, said in record.texts.items()} or None,
        "split": record.split,
        "group": record.group if record.group != record.id else None,
        "extra": _json(record.extra, record),
        "annotation": _json(record.annotation, record),
        "width": size[0],
        "height": size[1],
        "boxes": [_box(box) for box in record.boxes] or None,
        "regions": record.regions or None,
        "origin": record.origin or None,
    }


def _json(value: Any, record: Record) -> str | None:
    if not value:
        return None
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{record.id} has a value that JSON does not know: {error}", where=record.origin) from error


def _box(box: RegionBox) -> dict[str, Any]:
    corners = dict(zip(("x1", "y1", "x2", "y2"), map(float, box.box), strict=True))
    return {**corners, "name": box.name, "polygons": [list(p) for p in box.polygons], "score": box.score}


def record_at(batch: pa.RecordBatch, row: int, images: Path | None) -> Record:
    """The record in one row.

    Args:
        images: folder that relative image paths start at; None leaves images by path out.
    """
    cells = {name: column[row].as_py() for name, column in zip(SCHEMA.names, batch.columns, strict=True)}
    size = None if cells["width"] is None else (cells["width"], cells["height"])
    return Record(
        id=cells["id"],
        image=_image(cells, images),
        captions=_said(cells["captions"]),
        texts=_said(cells["texts"]),
        split=cells["split"],
        group=cells["group"] or "",
        extra=json.loads(cells["extra"] or "{}"),
        origin=cells["origin"] or "",
        size=size,
        boxes=tuple(map(_region_box, cells["boxes"] or ())),
        annotation=json.loads(cells["annotation"] or "{}"),
        regions=cells["regions"] or "",
    )


def _said(pairs: list[tuple[str, list[str]]] | None) -> dict[str, tuple[str, ...]]:
    return {code: tuple(said) for code, said in pairs or ()}


def _image(cells: dict[str, Any], images: Path | None) -> ImageRef | None:
    path, data, key = cells["image"], cells["image_data"], cells["image_key"]
    if data is not None:
        return ImageRef(data=data, key=key or "")
    if path is None or images is None:
        return None
    return ImageRef(path=str(images / path), key=key if key is not None else path)


def _region_box(cells: dict[str, Any]) -> RegionBox:
    corners = (cells["x1"], cells["y1"], cells["x2"], cells["y2"])
    return RegionBox(corners, cells["name"], tuple(map(tuple, cells["polygons"])), cells["score"])
