"""Region store: precomputed regions of many images, mapped into memory; image keys in, a region table out.

A store is a folder: ``manifest.json`` (what made the regions, and each shard with its counts and checksum), a file
``keys-N.arrow`` (which image is where) and ``shards/*.arrow``: Arrow streams with one row per image, which the
``datasets`` library opens as well. Features are fp16, fp32, or int8 with a scale per region; of a class distribution
the largest shares are kept, and how much is left for all others together. ``store_build`` writes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mmbert.errors import DataError
from mmbert.model.packed import RegionTable
from mmbert.vision.regions import Regions
from mmbert.vision.store_files import StoreFiles
from mmbert.vision.store_format import PLAN, Layout, checksum, read_manifest, shard_name
from mmbert.vision.store_shards import Shard, shard_columns

MOST_OPEN = 400
"""Shards mapped at a time; each keeps a file open, and systems commonly allow 1,024."""


class RegionStore:
    """A store opened for reading.

    Args:
        path: its folder, or an fsspec URL.

    Raises:
        DataError: no store there, unfinished, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._files = StoreFiles(path)
        manifest = read_manifest(self._files)
        if manifest is None:
            unfinished = PLAN in self._files.names("")
            raise DataError(
                "unfinished: its extraction was interrupted" if unfinished else "no region store here",
                where=self.path,
                hint="run the same command again; it goes on where it stopped"
                if unfinished
                else "make one with `mmbert features extract` or `mmbert features convert`",
            )
        self.manifest = manifest
        self.layout = manifest.layout
        self._entries = {entry.number: entry for entry in manifest.shards}
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __reduce__(self) -> tuple[type[RegionStore], tuple[str]]:
        return RegionStore, (self.path,)  # another process maps the files itself

    def __len__(self) -> int:
        return self.manifest.images

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._number(key) is not None

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        """Columns of the table of keys: shard, row in it, number of regions."""
        where = self._files.place(self.manifest.keys_file)
        table = self._files.read_arrow(self.manifest.keys_file)
        try:
            columns = {name: table[name].to_numpy() for name in ("shard", "row", "regions")}
            self._keys: list[str] = table["key"].to_pylist()
        except KeyError as error:
            raise DataError(f"damaged: {error}", where=where, hint="make the store again") from error
        wrong = len(self._keys) != len(self) or int(columns["regions"].sum()) != self.manifest.regions
        if wrong or not set(np.unique(columns["shard"]).tolist()) <= self._entries.keys():
            raise DataError("damaged: it does not fit the manifest", where=where, hint="make the store again")
        return columns

    @property
    def keys(self) -> list[str]:
        """Keys of all images, in the order they were written."""
        return self._keys if self._table else []

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def _number(self, key: str) -> int | None:
        """Number of an image; a key with a file's ending also finds one without (``12.jpg`` finds ``12``)."""
        found = self._numbers.get(key)
        if found is None and "." in key.rpartition("/")[2]:
            found = self._numbers.get(key.rpartition(".")[0])
        return found

    def _known(self, key: str) -> int:
        number = self._number(key)
        if number is None:
            hint = "extract the image's features into it, or leave the record out with --skip-bad"
            raise DataError(f"no regions of {key!r} in the store", where=self.path, hint=hint)
        return number

    def count(self, key: str) -> int:
        """Regions of an image, the whole image counted.

        Raises:
            DataError: the image is not in the store.
        """
        return int(self._table["regions"][self._known(key)])

    def regions(self, key: str) -> Regions:
        """Regions of one image, in fp32.

        Raises:
            DataError: the image is not in the store, or its shard is damaged.
        """
        _, table = self.table([key])
        assert table.features is not None
        width, height = table.sizes[0].int().tolist()
        classes = None if table.classes is None else table.classes.numpy()
        return Regions(table.boxes.numpy(), table.features.numpy(), (width, height), classes, self.layout.encoder)

    def table(self, keys: Sequence[str], *, classes: bool = True) -> tuple[list[int], RegionTable]:
        """Regions of several images in one table: each value is copied once, from the mapped file to its place.

        Args:
            keys: of the images; one may come twice.
            classes: also make class distributions, where the store has them.

        Returns:
            first row of each image and one past the last, and the table in fp32.
        """
        counts = [self.count(key) for key in keys]
        first_rows = np.cumsum([0, *counts]).tolist()
        table = empty_table(first_rows[-1], self.layout, classes=classes)
        self.fill(table, list(zip(keys, first_rows, strict=False)))
        return first_rows, table

    def fill(self, table: RegionTable, wanted: Sequence[tuple[str, int]]) -> None:
        """Write the regions of images into a table of fp32, each from a given row on.

        Raises:
            DataError: an image is not in the store, or its shard is damaged.
        """
        shards, rows = self._table["shard"], self._table["row"]
        assert table.features is not None
        for key, start in wanted:
            number = self._known(key)
            shard, row = self._shard(int(shards[number])), int(rows[number])
            self._check_row(number, shard, row)
            first, end = shard.bounds[row], shard.bounds[row + 1]
            here = slice(start, start + end - first)
            table.boxes[here].copy_(shard.boxes[first:end])
            table.sizes[here] = shard.sizes[row]
            table.features[here].copy_(shard.features[first:end])
            if shard.scales is not None:
                table.features[here].mul_(shard.scales[first:end, None])
            if table.classes is not None and shard.class_ids is not None:
                assert shard.rest is not None and shard.shares is not None
                others = max(1, self.layout.num_classes - self.layout.kept_classes)
                dense = table.classes[here]
                dense.copy_((shard.rest[first:end] / others)[:, None].expand_as(dense))
                dense.scatter_(1, shard.class_ids[first:end].long(), shard.shares[first:end].float())

    def _check_row(self, number: int, shard: Shard, row: int) -> None:
        inside = 0 <= row < len(shard.sizes)
        if not inside or shard.bounds[row + 1] - shard.bounds[row] != int(self._table["regions"][number]):
            raise DataError(f"damaged: {self.keys[number]!r} is not where the keys say", where=self.path)

    def _shard(self, number: int) -> Shard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self._entries[number]
        name = shard_name(number)
        self._open[number] = shard_columns(
            self._files.read_arrow(name, entry.bytes), self.layout, self._files.place(name)
        )
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Read every shard, and compare it with its checksum and counts.

        Raises:
            DataError: a shard is damaged; it is named.
        """
        for done, entry in enumerate(self.manifest.shards, 1):
            name = shard_name(entry.number)
            try:
                content = self._files.read(name)
            except FileNotFoundError as error:
                raise DataError("missing", where=self._files.place(name), hint="copy or make it again") from error
            if checksum(content) != entry.checksum:
                raise DataError("damaged: another checksum", where=self._files.place(name), hint="copy it again")
            if not entry.images:
                continue
            shard = self._shard(entry.number)
            if (len(shard.sizes), len(shard.boxes)) != (entry.images, entry.regions):
                raise DataError("other counts than the manifest says", where=self._files.place(name))
            progress(done)


def empty_table(rows: int, layout: Layout, *, classes: bool) -> RegionTable:
    """A region table of the given size whose values are not filled in yet."""
    return RegionTable(
        boxes=torch.empty(rows, 4),
        sizes=torch.empty(rows, 2),
        features=torch.empty(rows, layout.feature_size),
        classes=torch.empty(rows, layout.num_classes) if classes and layout.num_classes else None,
    )
