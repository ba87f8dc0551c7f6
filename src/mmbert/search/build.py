"""Building an index: a corpus and a model go in; the index folder holds one row and one vector for each image.

Building again looks at every file's bytes and encodes only what is new or changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mmbert.api.ray_pool import ray_map, require_ray
from mmbert.api.usable import encode_usable_images
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.data.sources import open_data, parse_data
from mmbert.data.sources.folder import FolderSource, list_images
from mmbert.errors import DataError, ImageError, IndexStoreError, UsageError
from mmbert.search import neighbours, store
from mmbert.search.entries import Entry, Facts, column_types, entries_of, look, rows_of
from mmbert.search.learn import learn_calibration, tuning_queries
from mmbert.search.place import Place

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

LOT = 512
"""Images between two commits: what a killed build loses at most."""


@dataclass(frozen=True)
class IndexSummary:
    """What a build did, in images.

    Args:
        added: new in the index.
        unchanged: already there as they are.
        removed: taken out, because they are gone from the folder or its metadata (``prune``).
        failed: images and records left out, because they cannot be used (``skip_bad``).
        updated: already there, and changed since (pixels or words).
        vanished: in the index and gone from the folder or its metadata; still found by searches, unless ``prune``.
        unlisted: in the folder, and in no usable record of its metadata.
        measured: metadata columns left out, because the index measures the same itself (``store.MEASURED``).
        problems: (where, what) of the failed ones.
    """

    added: int
    unchanged: int
    removed: int
    failed: int
    updated: int = 0
    vanished: int = 0
    unlisted: int = 0
    measured: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def build_index(
    model: MMBert,
    folder: str | Path,
    out: str | Path,
    *,
    progress: bool = False,
    skip_bad: bool = False,
    prune: bool = False,
    model_name: str | None = None,
    kind: str | None = None,
    keep_regions: bool = False,
    ray_workers: int = 0,
) -> IndexSummary:
    """Make an index of the images of ``folder`` at ``out``, or bring it up to date.

    A build that is killed leaves the index as it was for readers; the next one goes on where it stopped.

    Args:
        model: makes the vectors; its fingerprint is stored.
        folder: a folder of images, with or without metadata, or a corpus by name (``starter:heldout_style``).
        out: folder of the index, made if it does not exist; or a URI of an object store (``s3://bucket/index``).
        progress: show a bar on standard error.
        skip_bad: leave out images and records that cannot be used instead of stopping.
        prune: remove from the index what is gone from the folder or its metadata.
        model_name: name or folder of the model, so that a search can load it by itself.
        kind: of the vector index (``neighbours.KINDS``), whatever the number of images, from now on; where None, it
            stays as it is, and a new index has none up to 100,000 images and one that fits the number above.
        keep_regions: also keep each image's embedded regions, so that re-ranking opens no images. Lasts: an index
            that has them goes on keeping them.
        ray_workers: of a Ray cluster that encode, a lot of some hundred images each at a time; all of its machines have
            to reach ``folder`` under the same name, and the model by ``model_name``. 0: this process encodes.

    Raises:
        UsageError: Ray is not installed, or the model has no name.
        IndexStoreError: no images; ``out`` is of another model or folder, damaged, being written to, or no index.
        DataError: a bad record or image, unless ``skip_bad``.
    """
    bad = BadRecords(skip=skip_bad)
    root, source = _root(str(folder)), str(folder)
    found = _entries(source, root, bad)
    name = model_name or getattr(model, "name_or_path", None)
    about = store.About(model.fingerprint, model.embedding_size, str(name) if name else None, root, source)
    if kind is not None:
        neighbours.choose_kind(0, kind)
    if ray_workers:
        require_ray()  # before anything is written
    if ray_workers and about.model is None:
        raise UsageError("workers elsewhere cannot load a model without a name", hint="give model_name")
    place = Place(out)
    _prepare(place, about)
    with place.lock():
        build = _Build(model, place, about, bad, kind, keep_regions, ray_workers)
        return build.run(found, prune=prune, progress=progress)


def _root(source: str) -> str | None:
    """Absolute folder that image paths are relative to; None for a corpus known by name."""
    options = parse_data(source)
    return os.path.abspath(Path(options["root"]).expanduser()) if options["source"] == "folder" else None  # noqa: PTH100


@dataclass(frozen=True)
class _Found:
    """What is to be indexed.

    Args:
        entries: by path.
        may_be_refused: whether an image that is not among them may be that of a record that was refused.
        unlisted, measured: as in ``IndexSummary``.
    """

    entries: dict[str, Entry]
    may_be_refused: Callable[[str], bool]
    unlisted: int
    measured: tuple[str, ...]


def _entries(source: str, root: str | None, bad: BadRecords) -> _Found:
    nothing = IndexStoreError("no images to index", where=source, hint="give a folder with images in it")
    if root is not None and Path(root).is_dir() and not list_images(Path(root)):
        raise nothing
    opened = open_data(source, report=bad)
    measured: set[str] = set()

    def records() -> Iterator[Record]:
        for i in range(len(opened)):
            record = opened[i]
            measured.update(store.MEASURED.intersection(record.extra))
            yield record

    entries = entries_of(records())
    if not entries:
        raise nothing
    names = tuple(sorted(measured))
    if isinstance(opened, FolderSource):
        return _Found(entries, opened.may_be_refused, len(opened.unlisted()), names)
    refused = len(bad) > 0  # other corpora do not say which images theirs are
    return _Found(entries, lambda path: refused, 0, names)


def _prepare(place: Place, about: store.About) -> None:
    """Make the folder, or make sure that the index in it may be added to.

    Raises:
        IndexStoreError: it may not.
    """
    if place.is_file():
        raise IndexStoreError("is a file", where=str(place), hint="give a folder for the index")
    try:
        place.make()
        inside = place.names() - {".lock", store.ABOUT + ".part"}
        if not inside:
            store.write_about(place, about)
            return
    except OSError as error:
        raise IndexStoreError(f"cannot be written: {error.strerror}", where=str(place)) from error
    if store.ABOUT not in inside:
        raise IndexStoreError("holds other files and no index", where=str(place), hint="give another --out")
    there = store.read_about(place)
    other = "give another --out, or delete this index first"
    if there.fingerprint != about.fingerprint or there.size != about.size:
        raise IndexStoreError(
            f"made by another model ({there.model or there.fingerprint})", where=str(place), hint=other
        )
    moved = there.root is not None and about.root is not None and not Path(there.root).is_dir()
    if there.root != about.root and not moved:
        raise IndexStoreError(f"holds the images of {there.root or there.source}", where=str(place), hint=other)


class _Build:
    def __init__(
        self,
        model: MMBert,
        place: Place,
        about: store.About,
        bad: BadRecords,
        kind: str | None,
        keep_regions: bool,
        ray_workers: int,
    ) -> None:
        self.model, self.place, self.about, self.bad, self.kind = model, place, about, bad, kind
        self.there = store.read_about(place)
        self.keep_regions = keep_regions or self.there.regions > 0
        self.regions = self.there.regions
        self.ray_workers = ray_workers

    def run(self, found: _Found, *, prune: bool, progress: bool) -> IndexSummary:
        entries = found.entries
        with store.faults(self.place):
            table = store.open_for_writing(self.place, self.about.size)
            known = _known(table)
        types = column_types(entries.values())
        self._fit_columns(table, types)
        done = {"added": 0, "updated": 0, "unchanged": 0}
        good: set[str] = set()
        bar = tqdm(total=len(entries), desc="indexing", unit="image", leave=False, disable=not progress)
        with bar:
            for seen in self._examined(entries, known):
                for what, paths in self._put(table, seen, known, types).items():
                    done[what] += len(paths)
                    good.update(paths)
                bar.update(seen.count)
        # What is there and cannot be read now is not gone, neither an image nor its row.
        vanished = sorted(path for path in known.keys() - good - entries.keys() if not found.may_be_refused(path))
        with store.write_faults(self.place):
            if prune:
                for gone in _lots(vanished, LOT):
                    table.delete(_among(gone))
            if not good and not table.count_rows():
                raise IndexStoreError("none of the images can be used", where=self.about.source)
            changed = not store.is_complete(table)
            if changed:
                store.tidy_up(table)  # now: to tune an index that is rewritten afterwards would be in vain
            about = self._learned(table, changed)
            if not store.is_complete(table):
                store.complete(table)
        if about != self.there:
            store.write_about(self.place, about)
        return IndexSummary(
            **done,
            removed=len(vanished) if prune else 0,
            failed=len(self.bad),
            vanished=0 if prune else len(vanished),
            unlisted=found.unlisted,
            measured=found.measured,
            problems=tuple(self.bad.found),
        )

    def _learned(self, table: Any, changed: bool) -> store.About:
        """What the index says of itself now: its vector index, tuned, and the calibration of its scores."""
        there, rows = self.there, int(table.count_rows())
        found, calibration = there.neighbours, there.calibration
        if neighbours.is_stale(found, rows, self.kind):
            kind = neighbours.choose_kind(rows, self.kind or (found.kind if found else None))
            partitions = neighbours.train(table, kind, self.about.size)
            found = neighbours.tune(table, kind, partitions, *tuning_queries(self.model, table))
        if changed or calibration is None:
            calibration = learn_calibration(self.model, table)
        return replace(
            self.about,
            model=self.about.model or there.model,
            regions=self.regions,
            neighbours=found,
            calibration=calibration,
        )

    def _fit_columns(self, table: Any, types: dict[str, Any]) -> None:
        """Give the table the metadata columns that the records have now."""
        import pyarrow as pa

        there = {column.name: column.type for column in table.schema}
        wrong = [name for name, kind in types.items() if name in there and there[name] != kind]
        missing = [pa.field(name, kind) for name, kind in types.items() if there.get(name) != kind]
        with store.write_faults(self.place):
            if wrong:  # another type now: every row with a value has other words, so it is written anew
                table.drop_columns(wrong)
            if missing:
                table.add_columns(pa.schema(missing))

    def _examined(self, entries: dict[str, Entry], known: dict[str, tuple[str, str]]) -> Iterator[Examined]:
        """All entries, lot by lot, as they are now."""
        contents = {path: content for path, (content, _) in known.items()}
        lots = [
            (lot, {entry.path: contents[entry.path] for entry in lot if entry.path in contents})
            for lot in _lots(entries.values(), LOT)
        ]
        skip, keep = self.bad.skip, self.keep_regions
        if self.ray_workers:
            gpus = int(getattr(getattr(self.model, "device", None), "type", "cpu") == "cuda")
            named = (self.about.model, skip, keep, getattr(self.model, "int8", False))
            yield from ray_map(Examiner.by_name, named, lots, self.ray_workers, gpus=gpus)
        else:
            yield from map(Examiner(self.model, skip, keep), lots)

    def _put(self, table: Any, seen: Examined, known: dict[str, tuple[str, str]], types: Any) -> dict[str, list[str]]:
        """Write what is new or changed in a lot; gives paths that were added, updated, unchanged."""
        self.bad.found.extend(seen.problems)
        self.regions = seen.region_count or self.regions
        fresh, vectors, regions, facts = seen.fresh, seen.vectors, seen.regions, seen.facts
        reworded = [entry for entry in seen.same if known[entry.path][1] != entry.words(types)]
        same = {entry.path for entry in seen.same} - {entry.path for entry in reworded}
        if reworded:
            with store.faults(self.place):
                old_vectors, old_regions = _kept(table, reworded)
            vectors, regions = np.concatenate([vectors, old_vectors]), regions + old_regions
        changed = fresh + reworded
        if changed:
            rows = rows_of(changed, facts, vectors, types, table.schema, regions)
            self._write(table, rows, np.array([entry.path in known for entry in changed]))
        return {
            "added": [entry.path for entry in changed if entry.path not in known],
            "updated": [entry.path for entry in changed if entry.path in known],
            "unchanged": sorted(same),
        }

    def _write(self, table: Any, rows: Any, there: Any) -> None:
        """Add rows, or put them in the place of those with the same path where ``there``."""
        with store.write_faults(self.place):
            if not there.all():
                table.add(rows.filter(~there))
            if there.any():
                merge = table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(rows.filter(there))


@dataclass(frozen=True)
class Examined:
    """A lot of entries as they are now.

    Args:
        count: of the lot.
        same: entries whose images are those that the index knows.
        fresh: entries with new or changed images.
        vectors: [len(fresh), D].
        regions: embedded regions of the fresh as they are stored, where they are kept.
        region_count: so many each; 0 where none are kept.
        facts: of all of them, by path.
        problems: (where, what) of those that cannot be used.
    """

    count: int
    same: list[Entry]
    fresh: list[Entry]
    vectors: Any
    regions: list[bytes | None]
    region_count: int
    facts: dict[str, Facts]
    problems: list[tuple[str, str]]


class Examiner:
    """Reads the files of a lot of entries and encodes those that are new or changed; here or on another machine.

    Args:
        model: makes the vectors.
        skip_bad: leave out what cannot be used.
        keep_regions: embed regions to be kept, too.
    """

    def __init__(self, model: MMBert, skip_bad: bool, keep_regions: bool) -> None:
        self.model, self.skip_bad, self.keep_regions = model, skip_bad, keep_regions

    @classmethod
    def by_name(cls, model: str, skip_bad: bool, keep_regions: bool, int8: bool) -> Examiner:
        """With the model of this name."""
        from mmbert.api.front_door import MMBert

        return cls(MMBert.from_pretrained(model, int8=int8), skip_bad, keep_regions)

    def __call__(self, lot: tuple[list[Entry], dict[str, str]]) -> Examined:
        """Entries, and the hash of each image by path as far as the index knows it.

        Raises:
            ImageError: an image cannot be used, unless those are skipped.
            DataError: vectors are not numbers.
        """
        entries, known = lot
        bad, facts = BadRecords(skip=self.skip_bad), dict[str, Facts]()
        for entry in entries:
            try:
                facts[entry.path] = look(entry)
            except ImageError as error:
                bad.add(error)
        there = [entry for entry in entries if entry.path in facts]
        same = [entry for entry in there if known.get(entry.path) == facts[entry.path].content]
        fresh = [entry for entry in there if known.get(entry.path) != facts[entry.path].content]
        fresh, vectors = self._encode(fresh, facts, bad)
        regions, count = self._regions(fresh)
        return Examined(len(entries), same, fresh, vectors, regions, count, facts, list(bad))

    def _encode(self, lot: list[Entry], facts: dict[str, Facts], bad: BadRecords) -> tuple[list[Entry], Any]:
        # The hash in the key: whoever keeps images by key must not take a changed file for the old one.
        images = [ImageRef(e.image.path, e.image.data, key=f"{e.path}@{facts[e.path].content}") for e in lot]
        if not lot:
            return [], np.zeros((0, self.model.embedding_size), dtype=np.float32)
        kept, vectors = encode_usable_images(self.model, images, [entry.where for entry in lot], bad)
        if not np.isfinite(vectors).all():
            raise DataError("the model gives vectors that are not numbers (NaN)", hint="its weights are damaged")
        return [lot[i] for i in kept], vectors

    def _regions(self, entries: list[Entry]) -> tuple[list[bytes | None], int]:
        """Embedded regions of the images as they are stored, and their number, where they are kept."""
        if not self.keep_regions or not entries:
            return [None] * len(entries), 0
        kept = self.model.region_vectors([entry.image for entry in entries])
        return [regions.vectors.tobytes() for regions in kept], len(kept[0].vectors)


def _known(table: Any) -> dict[str, tuple[str, str]]:
    """Path -> hashes of content and words, of everything committed so far."""
    columns = ["path", "mmbert_content", "mmbert_words"]
    rows = table.search().select(columns).limit(max(1, table.count_rows())).to_arrow()
    path, content, words = (rows[name].to_pylist() for name in columns)
    return dict(zip(path, zip(content, words, strict=True), strict=True))


def _kept(table: Any, entries: Sequence[Entry]) -> tuple[Any, list[bytes | None]]:
    """``[n, D]`` vectors and the regions that the table has for these entries."""
    paths = [entry.path for entry in entries]
    columns = ["path", "vector", store.REGIONS]
    rows = table.search().where(_among(paths)).select(columns).limit(len(paths)).to_arrow()
    place = {path: i for i, path in enumerate(rows["path"].to_pylist())}
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    regions = rows[store.REGIONS].to_pylist()
    order = [place[path] for path in paths]
    return vectors[order], [regions[i] for i in order]


def _among(paths: Iterable[str]) -> str:
    """SQL: the row is one of these."""
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return f"path IN ({quoted})"


def _lots(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while lot := list(islice(rest, size)):
        yield lot
