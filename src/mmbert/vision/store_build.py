"""Writing a region store: regions of many images in, shards out; a build that is killed goes on where it stopped.

``plan.json`` says beforehand which image goes into which shard, so a shard's bytes depend on nothing else: several
processes or machines take every n-th shard each, and whoever finds that none is missing writes the manifest. A build
of other images takes over what an unfinished one has done, and plans the rest anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from mmbert.data.records import BadRecords
from mmbert.errors import DataError
from mmbert.vision.regions import Regions
from mmbert.vision.store_files import PARTIAL, StoreFiles
from mmbert.vision.store_format import (
    MANIFEST,
    PLAN,
    SHARDS,
    Layout,
    Manifest,
    ShardEntry,
    checksum,
    read_manifest,
    shard_name,
)
from mmbert.vision.store_plan import DONE, Plan, as_json, digest_of, note_name, read_plan
from mmbert.vision.store_shards import shard_bytes, stream_bytes

SHARD_IMAGES = 512
LARGEST_FP16 = float(np.finfo(np.float16).max)

Item = TypeVar("Item")
Result = Regions | DataError
Produce = Callable[[Sequence[Sequence[Item]]], Iterator[list[Result]]]
"""Lots of items in; for each lot, the regions (or what is wrong) of each item in its order."""


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        images, regions: written by this call.
        known: images that were in the store already.
        left_out: bad ones, as (where, message), of all shards of the build that are done.
        complete: whether the store is finished; not while other parts still run.
        readable: whether there is a store to read, finished or not: a finished one that is added to stays one.
        waiting: images that are not in the store and that other parts take; those left out before are among them.
    """

    images: int = 0
    regions: int = 0
    known: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False
    readable: bool = False
    waiting: int = 0


class StoreBuilder:
    """One build of one store.

    Args:
        path: folder or fsspec URL of the store; a finished store is appended to.
        layout: of the regions.
        keys: of all images that the store should hold afterwards, distinct.
        shard_images: images per shard: what a killed build loses at most, and what is kept in memory.

    Raises:
        DataError: the store holds regions of another layout (finished or not), or something else.
    """

    def __init__(
        self, path: str | Path, layout: Layout, keys: Sequence[str], *, shard_images: int = SHARD_IMAGES
    ) -> None:
        self.files = StoreFiles(path)
        self.layout = layout
        _check_keys(keys, self.files.path)
        self.manifest = self._manifest()
        self._compare(keys)
        self.plan: Plan | None = None
        there = read_plan(self.files) if self.new else None
        if there is not None and there == self._planned(shard_images):
            self.plan = there
        elif there is not None:
            self._take_over(there)
            self._compare(keys)
            if not self.new:
                self._clear()
        if self.new and self.plan is None:
            self.plan = self._write_plan(shard_images)

    def _manifest(self) -> Manifest | None:
        """The manifest that is there; it must be of this layout."""
        found = read_manifest(self.files)
        if found is not None:
            _check_same(found.layout, self.layout, self.files.path)
        return found

    def _compare(self, keys: Sequence[str]) -> None:
        """Sort out which images the store has, and which are still to be made."""
        manifest = self.manifest
        known = [] if manifest is None else self.files.read_arrow(manifest.keys_file)["key"].to_pylist()
        self.known = set(known)
        self.new = [number for number, key in enumerate(keys) if key not in self.known]
        self.keys = [keys[number] for number in self.new]

    def _planned(self, shard_images: int) -> Plan:
        return Plan(
            layout=self.layout,
            first=1 + max(self._finished, default=-1),
            images=len(self.keys),
            shard_images=shard_images,
            digest=digest_of(self.keys),
        )

    @property
    def _finished(self) -> set[int]:
        """Numbers of the shards that the manifest has."""
        return set() if self.manifest is None else {entry.number for entry in self.manifest.shards}

    def _write_plan(self, shard_images: int) -> Plan:
        foreign = set(self.files.names("")) - {PLAN, DONE, SHARDS}
        if self.manifest is None and any(not name.endswith(PARTIAL) for name in foreign):
            raise DataError("this folder holds something else", where=self.files.path, hint="give a new folder")
        plan = self._planned(shard_images)
        self.files.write(PLAN, as_json(plan))
        return plan

    def _take_over(self, there: Plan) -> None:
        """Make room for another plan: the shards of this one that are done go into the manifest.

        Several processes may do so at once: notes go after the manifest is written, and are read before it.

        Raises:
            DataError: they are of another layout.
        """
        done = self._notes(there.shards)
        self.manifest = self._manifest()
        entries = [entry for entry in done if entry.number not in self._finished]
        if any(entry.images for entry in entries):
            if there.layout != self.layout:
                begun = "finish it with the encoder and options that it was begun with"
                raise DataError(
                    "an unfinished extraction with other settings is here",
                    where=self.files.path,
                    hint=begun if self.manifest is not None else f"{begun}, or delete the folder",
                )
            self._add(entries)
        for entry in done:
            self.files.remove(note_name(entry.number))

    def _is_stale(self, there: Plan) -> bool:
        """Whether the store holds all that this plan was about: a build was killed while it tidied up."""
        return self._finished >= set(there.shards)

    def build(
        self,
        items: Sequence[Item],
        produce: Produce[Item],
        *,
        part: tuple[int, int] = (0, 1),
        bad: BadRecords | None = None,
        progress: Callable[[int], None] = lambda images: None,
    ) -> BuildReport:
        """Write the shards that are missing, and finish the store if none is.

        Args:
            items: what ``produce`` makes regions of, one for each key.
            produce: see :data:`Produce`.
            part: which of how many processes this is: it takes every n-th shard.
            bad: decides about items without regions.
            progress: told how many images each shard had.

        Raises:
            DataError: an item cannot be used and ``bad`` does not skip; a shard cannot be written.
        """
        bad = bad if bad is not None else BadRecords()
        report = BuildReport(known=len(items) - len(self.new))
        if self.plan is None:
            there = read_plan(self.files)
            if there is not None and self._is_stale(there):
                self._clear()
            report.complete = report.readable = self.manifest is not None
            return report
        for folder in ("", SHARDS, DONE):
            self.files.remove_partial(folder)
        done = set(self.files.names(DONE))
        index, parts = part
        missing = [n for n in self.plan.shards if n % parts == index and note_name(n).rpartition("/")[2] not in done]
        lots = [self._numbers(number) for number in missing]
        made = produce([[items[self.new[i]] for i in lot] for lot in lots])
        for number, lot in zip(missing, lots, strict=True):
            entry = self._write(number, [self.keys[i] for i in lot], next(made), bad)
            report.images += entry.images
            report.regions += entry.regions
            progress(len(lot))
        return self.finish(report)

    def _numbers(self, shard: int) -> range:
        assert self.plan is not None
        start = (shard - self.plan.first) * self.plan.shard_images
        return range(start, min(start + self.plan.shard_images, self.plan.images))

    def _write(self, number: int, keys: Sequence[str], results: Sequence[Result], bad: BadRecords) -> ShardEntry:
        good: list[tuple[str, Regions]] = []
        left_out: list[tuple[str, str]] = []
        for key, result in zip(keys, results, strict=True):
            try:
                if isinstance(result, DataError):
                    raise result
                _check_regions(result, self.layout, key)
            except DataError as error:
                bad.add(error)
                left_out.append((error.where or key, error.message))
            else:
                good.append((key, result))
        self._check_plan()
        content = shard_bytes(good, self.layout)
        self.files.write(shard_name(number), content)
        entry = ShardEntry(
            number=number,
            images=len(good),
            regions=sum(len(regions) for _, regions in good),
            bytes=len(content),
            checksum=checksum(content),
            left_out=left_out,
        )
        self.files.write(note_name(number), as_json(entry))
        return entry

    def _check_plan(self) -> None:
        """Whether what is made still has a place: the plan may be gone, where another process has done all of it.

        Raises:
            DataError: a build of other images has taken the store over.
        """
        if read_plan(self.files) not in (self.plan, None):
            raise DataError(
                "an extraction of other images has begun here in the meantime",
                where=self.files.path,
                hint="give all parts the same images and options, and run this again when it is done",
            )

    def finish(self, report: BuildReport) -> BuildReport:
        """Write the manifest if all shards are done; else leave that to the process that finishes the last one."""
        assert self.plan is not None
        try:
            entries = self._done()
        except FileNotFoundError:
            now = read_manifest(self.files)  # another process may have finished it in the meantime
            listed = now is not None and {s.number for s in now.shards} >= set(self.plan.shards)
            report.readable = now is not None
            report.complete = listed or (report.readable and read_plan(self.files) is None)
            report.waiting = 0 if report.complete else self._waiting()
            return report
        report.left_out = list(dict.fromkeys(pair for entry in entries for pair in entry.left_out))
        if any(entry.images for entry in entries):
            self._add(entries)
        self._clear()
        for entry in entries:
            if entry.number not in self._finished:
                self.files.remove(shard_name(entry.number))
        if self.manifest is None:
            where, message = report.left_out[0]
            raise DataError(f"no image can be used; the first: {message}", where=where, hint="mend it first")
        report.complete = report.readable = True
        return report

    def _waiting(self) -> int:
        """Images of the shards that are not done."""
        assert self.plan is not None
        done = {entry.number for entry in self._notes(self.plan.shards)}
        return sum(len(self._numbers(number)) for number in self.plan.shards if number not in done)

    def _add(self, entries: Sequence[ShardEntry]) -> None:
        """Write the manifest anew, with these shards behind its own."""
        before = self.manifest
        shards = [*(before.shards if before is not None else []), *entries]
        images, regions = (sum(getattr(entry, name) for entry in shards) for name in ("images", "regions"))
        manifest = Manifest(layout=self.layout, images=images, regions=regions, shards=shards)
        tables = [] if before is None else [self.files.read_arrow(before.keys_file)]
        tables += [self._keys_of(entry) for entry in entries]
        self.files.write(manifest.keys_file, stream_bytes(pa.concat_tables(tables).combine_chunks()))
        self.files.write(MANIFEST, as_json(manifest))
        if before is not None and before.keys_file != manifest.keys_file:
            self.files.remove(before.keys_file)
        self.manifest = manifest

    def _done(self) -> list[ShardEntry]:
        """What the notes say about all shards of the plan.

        Raises:
            FileNotFoundError: a shard is not done yet.
            DataError: a note is damaged.
        """
        assert self.plan is not None
        entries = self._notes(self.plan.shards)
        if len(entries) < len(self.plan.shards):
            raise FileNotFoundError(DONE)
        return entries

    def _notes(self, numbers: Sequence[int]) -> list[ShardEntry]:
        """What the notes say about those of these shards that are done.

        Raises:
            DataError: a note is damaged.
        """
        there = set(self.files.names(DONE))
        entries = []
        for name in map(note_name, numbers):
            if name.rpartition("/")[2] not in there:
                continue
            try:
                entries.append(ShardEntry.model_validate_json(self.files.read(name)))
            except FileNotFoundError:  # another process tidies up
                continue
            except ValidationError as error:
                raise DataError(
                    "damaged", where=self.files.place(name), hint="delete this file and run again"
                ) from error
        return entries

    def _keys_of(self, entry: ShardEntry) -> pa.Table:
        table = self.files.read_arrow(shard_name(entry.number), entry.bytes)
        return pa.table(
            {
                "key": table["key"],
                "shard": pa.array(np.full(len(table), entry.number, dtype=np.int32)),
                "row": pa.array(np.arange(len(table), dtype=np.int32)),
                "regions": pc.list_value_length(table["boxes"]),
            }
        )

    def _clear(self) -> None:
        """Remove the plan and the notes about single shards; the manifest has all of it."""
        for name in self.files.names(DONE):
            self.files.remove(f"{DONE}/{name}")
        self.files.remove(PLAN)
        if self.files.local and Path(self.files.place(DONE)).is_dir():
            try:
                Path(self.files.place(DONE)).rmdir()
            except OSError:  # another process that finishes is doing the same
                return


def _check_regions(regions: Regions, layout: Layout, key: str) -> None:
    """Whether regions are of the layout.

    Raises:
        DataError: another feature size or number of classes, or a feature that fp16 cannot hold.
    """
    if regions.features.shape[1] != layout.feature_size:
        raise DataError(f"{regions.features.shape[1]} numbers per region, not {layout.feature_size}", where=key)
    classes = 0 if regions.classes is None else regions.classes.shape[1]
    if classes != layout.num_classes:
        raise DataError(f"{classes} classes, not {layout.num_classes}", where=key)
    if regions.classes is not None and not np.isfinite(regions.classes).all():
        raise DataError("class shares are not finite", where=key)
    if layout.dtype == "fp16" and float(np.abs(regions.features).max()) > LARGEST_FP16:
        raise DataError("a feature is too large for fp16", where=key, hint="use --dtype fp32")


def _check_keys(keys: Sequence[str], where: str) -> None:
    if not keys:
        raise DataError("no images", where=where)
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"two images are called {twice!r}", where=where, hint="give each image a name of its own")


def _check_same(there: Layout, wanted: Layout, where: str) -> None:
    for name in Layout.model_fields:
        old, new = getattr(there, name), getattr(wanted, name)
        if old != new:
            raise DataError(
                f"the store has {name.replace('_', ' ')} {old}, not {new}",
                where=where,
                hint="append with the encoder and options that made it, or give a new folder",
            )
