"""What goes into an index: records become entries, one for each image, and entries become rows of the table."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import UnidentifiedImageError

from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError, ImageError
from mmbert.search.store import MEASURED, PRIVATE, REGIONS, RESERVED
from mmbert.vision.images import read_header

Types = Mapping[str, pa.DataType]


@dataclass
class Entry:
    """One image and all that its records say.

    Args:
        path: relative to the root with ``/``, or the key of an image without file; unique.
        where: what to call it in messages.
    """

    path: str
    image: ImageRef
    id: str
    split: str | None
    where: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            ImageError: the file cannot be read.
        """
        if self.image.data is not None:
            return self.image.data
        try:
            return Path(str(self.image.path)).read_bytes()
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}", where=self.where) from error

    def values(self, types: Types) -> dict[str, Any]:
        """The metadata columns in the types that the table has."""
        return {name: _as(value, types[name]) for name, value in self.extra.items()}

    def words(self, types: Types) -> str:
        """Hash of everything but the pixels, as the table would hold it."""
        typed = {name: [str(types[name]), value] for name, value in self.values(types).items()}
        said = [self.id, self.split, self.captions, typed]
        return content_hash(json.dumps(said, sort_keys=True, ensure_ascii=False).encode())


@dataclass(frozen=True)
class Facts:
    """What a look at an image file tells: hash of its bytes, their number, width and height in pixels (upright)."""

    content: str
    size: int
    width: int | None
    height: int | None


def content_hash(data: bytes) -> str:
    """128 bits of BLAKE2b, in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def look(entry: Entry) -> Facts:
    """Read an image file without decoding it; width and height are None where its header makes no sense.

    Raises:
        ImageError: the file cannot be read.
    """
    data = entry.read()
    width = height = None
    try:
        with read_header(io.BytesIO(data)) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation: lies on its side
            width, height = (image.height, image.width) if turned else (image.width, image.height)
    except (ImageError, UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError):
        pass  # whoever decodes it will say what is wrong
    return Facts(content_hash(data), len(data), width, height)


def entries_of(records: Iterable[Record]) -> dict[str, Entry]:
    """One entry for each image; what several records with one image say is put together.

    Records without image are left out, and metadata that the index measures itself. Of two values in one metadata
    column the first counts.

    Raises:
        DataError: a metadata column is named like one of the index's own.
    """
    entries: dict[str, Entry] = {}
    for record in records:
        if record.image is None:
            continue
        path = record.image.key or record.id
        where = record.origin or path
        entry = entries.setdefault(path, Entry(path, record.image, record.id, record.split, where))
        for language, captions in record.captions.items():
            said = entry.captions.setdefault(language, [])
            said.extend(caption for caption in captions if caption not in said)
        for name, value in record.extra.items():
            if value is not None and name not in MEASURED:
                entry.extra.setdefault(_column(name, where), value)
    return entries


def _column(name: str, where: str) -> str:
    if name in RESERVED or name.startswith(("_", PRIVATE)) or not name.strip():
        raise DataError(f"the index cannot have a metadata column {name!r}", where=where, hint="rename the column")
    return re.sub("[.`]", "_", name)  # the database takes neither in a name


def column_types(entries: Iterable[Entry]) -> dict[str, pa.DataType]:
    """Type of each metadata column: true/false, whole number, number, else text."""
    seen: dict[str, set[type]] = {}
    for entry in entries:
        for name, value in entry.extra.items():
            seen.setdefault(name, set()).add(_kind(value))
    return {name: _type(kinds) for name, kinds in sorted(seen.items())}


def _type(kinds: set[type]) -> pa.DataType:
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _kind(value: Any) -> type:
    if isinstance(value, bool):
        return bool
    if isinstance(value, int):
        return int if -(2**63) <= value < 2**63 else str
    return float if isinstance(value, float) else str


def _as(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    return float(value) if pa.types.is_floating(kind) else value


def rows_of(
    entries: Sequence[Entry],
    facts: Mapping[str, Facts],
    vectors: Any,
    types: Types,
    schema: pa.Schema,
    regions: Sequence[bytes | None],
) -> Any:
    """Rows of the table.

    Args:
        entries: ``n`` of them.
        facts: of each path.
        vectors: ``[n, D]`` float32.
        types: of the metadata columns.
        schema: of the table; columns that an entry says nothing about are null.
        regions: ``n`` images' embedded regions, or None where they are not kept.

    Returns:
        ``pyarrow.Table`` of ``n`` rows.
    """
    columns: dict[str, list[Any]] = {name: [] for name in schema.names if name != "vector"}
    for entry, kept in zip(entries, regions, strict=True):
        known = facts[entry.path]
        row = {
            "path": entry.path,
            "id": entry.id,
            "split": entry.split,
            "captions": json.dumps(entry.captions, ensure_ascii=False),
            "width": known.width,
            "height": known.height,
            "bytes": known.size,
            "image": entry.image.data,
            "mmbert_content": known.content,
            "mmbert_words": entry.words(types),
            REGIONS: kept,
            **entry.values(types),
        }
        for name, values in columns.items():
            values.append(None if row.get(name) is None else _as(row[name], schema.field(name).type))
    arrays = {name: pa.array(values, type=schema.field(name).type) for name, values in columns.items()}
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table([arrays[name] for name in schema.names], schema=schema)
