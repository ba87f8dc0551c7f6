"""A prepared store anywhere (``s3://``, ``gs://``, ``memory://``): its shards are fetched when they are wanted."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from mmbert.data.corpus import Words
from mmbert.data.records import BadRecords, Record
from mmbert.data.region_input import with_region_key
from mmbert.data.shards import checksum, open_shard, record_at
from mmbert.data.sources.prepared import ABOUT, AGAIN, check_about, only
from mmbert.errors import DataError
from mmbert.vision.store_files import StoreFiles

FETCHERS = 2
"""Shards that a process fetches at the same time."""


class Options(BaseModel):
    """Options of a stream.

    Attributes:
        root: where ``mmbert data prepare`` 's store lies: a URL, or a folder.
        split: several joined by ``+``; None: all.
        languages: captions in others are not seen.
        images: folder on this machine of images that are not in the shards.
        lanes: parts that the shards are dealt to, once and for all; batches come from them in turn. Where it is a
            multiple of the number of processes, each process reads its own shards only.
        window: shards of a lane whose records are shuffled together.
        cache: folder for fetched shards, which stay there; None: one for this run.
        cache_gb: size of that folder, for each process.
    """

    model_config = ConfigDict(extra="forbid")

    root: str
    split: str | None = None
    languages: Words | None = None
    images: Path | None = None
    lanes: int = Field(default=8, ge=1)
    window: int = Field(default=2, ge=1)
    cache: Path | None = None
    cache_gb: float = Field(default=16.0, gt=0)


@dataclass(frozen=True)
class RemoteShard:
    """One file of a store.

    Attributes:
        file: its name.
        split: of its records.
        rows, bytes, sha256: what it holds.
        start: number of its first record.
    """

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str
    start: int


class StreamedSource:
    """Records by number, as of any source; the shard of one that is asked for is fetched, whole, if it is not here.

    Args:
        options: as opened.
        about: what ``corpus.json`` says.
        splits: those of them to read.
    """

    def __init__(self, options: Options, about: dict[str, Any], splits: list[str]) -> None:
        self.name = f"{options.root}:{'+'.join(splits)}"
        self.options, self.about = options, about
        self.shards: list[RemoteShard] = []
        for split in splits:
            for one in about["splits"][split]["shards"]:
                start = self.shards[-1].start + self.shards[-1].rows if self.shards else 0
                fields = (one["file"], split, one["rows"], one["bytes"], one["sha256"])
                self.shards.append(RemoteShard(*fields, start))
        if not self.shards:
            raise DataError("holds no records", where=self.name, hint=AGAIN)
        self._starts = np.array([shard.start for shard in self.shards], dtype=np.int64)
        known = list(dict.fromkeys(code for split in splits for code in about["splits"][split]["languages"]))
        self.languages = tuple(known if options.languages is None else options.languages)
        for code in self.languages:
            if code not in known:
                hint = f"languages: {', '.join(known)}"
                raise DataError(f"no caption is in language {code!r}", where=self.name, hint=hint)
        self.by_regions = False
        """Images are looked up in region stores: by the key of their regions."""
        self.left_out: tuple[str, ...] = ()
        """Splits whose records a mixture leaves out, where a file has records of several."""
        self._cache = ShardCache(options)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.options, self.about, list(dict.fromkeys(shard.split for shard in self.shards)))

    def __len__(self) -> int:
        return self.shards[-1].start + self.shards[-1].rows

    def __getitem__(self, index: int, /) -> Record:
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        shard = self.shards[int(np.searchsorted(self._starts, number, side="right")) - 1]
        row = number - shard.start
        for batch in self._cache.batches(shard):
            if row < batch.num_rows:
                break
            row -= batch.num_rows
        record = record_at(batch, row, self._images())
        if self.options.languages is not None:
            record = only(record, self.options.languages)
        return with_region_key(record) if self.by_regions else record

    def _images(self) -> Path | None:
        if self.options.images is not None:
            return self.options.images.expanduser()
        # Not to be opened there, but its key counts, where regions are looked up.
        return None if self.about.get("images") is None else Path("/", str(self.about["images"]).lstrip("/"))

    def of_splits(self, splits: list[str]) -> StreamedSource:
        """The same store, with these splits only."""
        return StreamedSource(self.options, self.about, splits)

    def prefetch(self, numbers: list[int]) -> None:
        """Begin to fetch shards, by their places in ``shards``; returns at once."""
        for number in numbers:
            self._cache.fetch(self.shards[number])


class ShardCache:
    """Fetched shards, on the local disk and mapped; the one that was used longest ago makes room.

    Args:
        options: ``root``, ``cache`` and ``cache_gb``.
    """

    def __init__(self, options: Options) -> None:
        self._files = files_at(options.root)
        self._limit = int(options.cache_gb * 1e9)
        if options.cache is not None:
            self.folder = options.cache.expanduser()
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="mmbert-stream-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._here: OrderedDict[str, tuple[RemoteShard, Future[list[pa.RecordBatch]]]] = OrderedDict()
        self.fetched: list[str] = []
        """Names of the files that were fetched, in order."""

    def batches(self, shard: RemoteShard) -> list[pa.RecordBatch]:
        """The shard's records; waits until it is here.

        Raises:
            DataError: it cannot be fetched, or is not what ``corpus.json`` says.
        """
        try:
            return self.fetch(shard).result()
        except DataError:
            with self._lock:
                self._here.pop(shard.file, None)  # the next one who asks tries again
            raise

    def fetch(self, shard: RemoteShard) -> Future[list[pa.RecordBatch]]:
        """Begin to fetch a shard, if it is not here."""
        with self._lock:
            if shard.file in self._here:
                self._here.move_to_end(shard.file)
                return self._here[shard.file][1]
            future = self._pool.submit(self._get, shard)
            self._here[shard.file] = shard, future
            self._make_room()
            return future

    def _make_room(self) -> None:
        """Delete shards beyond the limit; one that is still mapped stays readable until its last reader lets it go."""
        held = sum(shard.bytes for shard, _ in self._here.values())
        for name, (shard, future) in list(self._here.items())[:-1]:
            if held <= self._limit:
                return
            if future.done():
                del self._here[name]
                self._path(shard).unlink(missing_ok=True)
                held -= shard.bytes

    def _path(self, shard: RemoteShard) -> Path:
        return self.folder / f"{shard.sha256}.arrow"

    def _get(self, shard: RemoteShard) -> list[pa.RecordBatch]:
        if self._files.local:
            return open_shard(Path(self._files.place(shard.file)))  # mapped where it lies
        path = self._path(shard)
        if path.is_file():
            with contextlib.suppress(DataError):  # another process may have made room just now
                return open_shard(path)
        self.fetched.append(shard.file)
        with tempfile.TemporaryDirectory(dir=self.folder) as aside:
            part = Path(aside) / "part"
            self._files.fetch(shard.file, part)
            if part.stat().st_size != shard.bytes or checksum(part) != shard.sha256:
                hint = "copy the store again, or prepare it again"
                raise DataError("is not as it was written", where=self._files.place(shard.file), hint=hint)
            batches = open_shard(part)  # what is mapped stays, whatever becomes of the name
            part.replace(path)
        return batches


def open_source(options: Options, *, report: BadRecords | None = None) -> StreamedSource:
    """Open a store; only ``corpus.json`` is read.

    Raises:
        DataError: no store, no such file system, split or language.
    """
    about = about_at(options.root)
    known = list(about["splits"])
    wanted = known if options.split is None else options.split.split("+")
    for split in wanted:
        if split not in known:
            raise DataError(f"no split {split!r}", where=options.root, hint=f"splits: {', '.join(known)}")
    return StreamedSource(options, about, wanted)


def files_at(root: str) -> StoreFiles:
    """The folder or URL, whose ``~`` is the user's."""
    return StoreFiles(root if "://" in root else Path(root).expanduser())


def about_at(root: str) -> dict[str, Any]:
    """``corpus.json`` of a store anywhere.

    Raises:
        DataError: it is missing, damaged, or of a later format.
    """
    files = files_at(root)
    where = files.place(ABOUT)
    try:
        return check_about(files.read(ABOUT), where)
    except FileNotFoundError as error:
        hint = "give a store that `mmbert data prepare` made, copied there as it is"
        raise DataError("cannot be read: no such file", where=where, hint=hint) from error
