"""A store that ``mmbert data prepare`` made: records in mapped files, turned into objects only when asked for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import FORMAT, Words
from mmbert.data.records import BadRecords, Record
from mmbert.data.shards import SCHEMA, checksum, open_shard, record_at
from mmbert.errors import DataError

ABOUT = "corpus.json"
AGAIN = "prepare the corpus again"


class Options(BaseModel):
    """Options of a store.

    ``root``: its folder. ``split`` (several joined by ``+``), ``languages``: keep only these. ``images``: folder of
    the images, where it has moved since the store was made.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str | None = None
    languages: Words | None = None
    images: Path | None = None


class PreparedSource:
    """The records of a store, or of one split of it.

    Args:
        options: as opened.
        about: what ``corpus.json`` says.
    """

    def __init__(self, options: Options, about: dict[str, Any]) -> None:
        self.root = Path(os.path.abspath(options.root.expanduser()))  # noqa: PTH100 (resolve() would follow links)
        self.name = f"{options.root}:{options.split}" if options.split else str(options.root)
        self.about = about
        self.images = _images(self.root, options.images, about)
        self._options = options
        wanted = _chosen(options, about)
        self._splits = {name: s for name, s in about["splits"].items() if name in wanted}
        self._batches = [batch for path in self._files() for batch in open_shard(path)]
        if not self._batches:
            raise DataError("holds no records", where=self.name, hint=AGAIN)
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self._kept = _with_any(self._batches, options.languages) if options.languages is not None else None
        known = list(dict.fromkeys(code for split in self._splits.values() for code in split["languages"]))
        self.languages = tuple(known if options.languages is None else options.languages)
        for code in self.languages:
            if code not in known:
                raise DataError(
                    f"no caption is in language {code!r}", where=self.name, hint=f"languages: {', '.join(known)}"
                )

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the files itself
        return type(self), (self._options, self.about)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int, /) -> Record:
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        row = number if self._kept is None else int(self._kept[number])
        place = int(np.searchsorted(self._ends, row, side="right"))
        batch = self._batches[place]
        record = record_at(batch, row - int(self._ends[place]) + batch.num_rows, self.images)
        return record if self._options.languages is None else only(record, self._options.languages)

    def _files(self) -> list[Path]:
        return [self.root / shard["file"] for split in self._splits.values() for shard in split["shards"]]

    def faults(self) -> Iterator[tuple[str, str]]:
        """Files that are not as they were written, as (file, what is wrong); reads all of them."""
        for split in self._splits.values():
            for shard in split["shards"]:
                if checksum(self.root / shard["file"]) != shard["sha256"]:
                    yield shard["file"], "its checksum is not that in corpus.json"


def open_source(options: Options, *, report: BadRecords | None = None) -> PreparedSource:
    """Open a store; its files are mapped, not read.

    Raises:
        DataError: no store, a damaged one, no such split or language, or none of its images where it says.
    """
    about = read_about(options.root.expanduser())
    for split in _chosen(options, about):
        if split not in about["splits"]:
            hint = f"splits: {', '.join(about['splits'])}"
            raise DataError(f"no split {split!r}", where=str(options.root), hint=hint)
    return PreparedSource(options, about)


def _chosen(options: Options, about: dict[str, Any]) -> list[str]:
    return list(about["splits"]) if options.split is None else options.split.split("+")


def read_about(folder: Path) -> dict[str, Any]:
    """``corpus.json`` of a store.

    Raises:
        DataError: it is missing, damaged, or of a later format.
    """
    path = folder / ABOUT
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = "give a folder that `mmbert data prepare` made"
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    return check_about(content, str(path))


def check_about(content: bytes, where: str) -> dict[str, Any]:
    """The content of a ``corpus.json``, read.

    Raises:
        DataError: it is damaged, or of a later format.
    """
    try:
        about = json.loads(content)
        if about["format"] != FORMAT:
            raise DataError(f"is of format {about['format']}, not {FORMAT}", where=where, hint=AGAIN)
        for split in about["splits"].values():
            for shard in split["shards"]:
                if os.path.basename(shard["file"]) != shard["file"]:  # noqa: PTH119
                    raise DataError(f"names a file elsewhere: {shard['file']}", where=where, hint=AGAIN)
                _ = (shard["sha256"], split["languages"], int(shard["rows"]), int(shard["bytes"]))
                if not re.fullmatch(r"[0-9a-f]{64}", shard["sha256"]):
                    raise ValueError(shard["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("is damaged", where=where, hint=AGAIN) from error
    found: dict[str, Any] = about
    return found


def _images(root: Path, given: Path | None, about: dict[str, Any]) -> Path | None:
    stored = about.get("images")
    if given is None and stored is None:
        return None
    folder = Path(os.path.abspath(given.expanduser())) if given is not None else root / str(stored)  # noqa: PTH100
    if not folder.is_dir():
        hint = "put it back, or say where it is: data={source: prepared, root: STORE, images: FOLDER}"
        raise DataError("no such folder of images", where=str(folder), hint=hint)
    return folder


def _with_any(batches: list[pa.RecordBatch], languages: tuple[str, ...]) -> np.ndarray:
    """Numbers of the rows that have any caption or text in these languages, or none at all in any."""
    kept, start = [], 0
    for batch in batches:
        wanted = np.zeros(batch.num_rows, dtype=bool)
        spoken = np.zeros(batch.num_rows, dtype=bool)
        for name in ("captions", "texts"):
            said = batch.column(SCHEMA.get_field_index(name))
            ends = said.offsets.to_numpy()
            codes = pc.is_in(said.keys, value_set=pa.array(languages)).to_numpy(zero_copy_only=False)
            before = np.concatenate([[0], np.cumsum(codes)])
            wanted |= before[ends[1:]] > before[ends[:-1]]
            spoken |= ends[1:] > ends[:-1]
        kept.append(start + np.flatnonzero(wanted | ~spoken))
        start += batch.num_rows
    return np.concatenate(kept)


def only(record: Record, languages: tuple[str, ...]) -> Record:
    """The record with what is said in these languages."""
    captions = {code: record.captions[code] for code in languages if code in record.captions}
    texts = {code: record.texts[code] for code in languages if code in record.texts}
    return replace(record, captions=captions, texts=texts)
