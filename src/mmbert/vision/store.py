"""Region store: precomputed regions of many images, mapped into memory; image keys in, a region table out.

A store is a folder: ``manifest.json`` (what made the regions, and each shard with its counts and checksum), a file
``keys-N.arrow`` (which image is where) and ``shards/*.arrow``: Arrow streams with one row per image, which the
``datasets`` library opens as well. Features are fp16, fp32, or int8 with a scale per region; of a class distribution
the largest shares are kept, and how much is left for all others together. ``store_build`` writes it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from mmbert.errors import DataError
from mmbert.model.packed import RegionTable
from mmbert.vision.regions import Regions
from mmbert.vision.store_files import StoreFiles

FORMAT = 1
MANIFEST = "manifest.json"
SHARDS = "shards"
MOST_OPEN = 400
"""Shards mapped at a time; each keeps a file open, and systems commonly allow 1,024."""

DType = Literal["fp16", "fp32", "int8"]
_NUMBERS: dict[str, Any] = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layout(_Section):
    """What all regions of a store have in common.

    Attributes:
        encoder: identity of what made them; a model refuses regions of another encoder.
        feature_size: F, numbers per region.
        dtype: how features are kept.
        num_classes: C of the class distributions; 0 where there are none.
        top_k: how many of a distribution's shares are kept.
    """

    encoder: str
    feature_size: int = Field(ge=1, le=1 << 20)
    dtype: DType = "fp16"
    num_classes: int = Field(default=0, ge=0, le=1 << 16)
    top_k: int = Field(default=16, ge=1)

    @property
    def kept_classes(self) -> int:
        """Shares kept per region: K."""
        return min(self.top_k, self.num_classes)


class ShardEntry(_Section):
    """One shard: its number, what is in it, and a checksum (BLAKE2b) of its bytes."""

    number: int = Field(ge=0)
    images: int = Field(ge=0)
    regions: int = Field(ge=0)
    bytes: int = Field(ge=0)
    checksum: str
    left_out: list[tuple[str, str]] = []


class Manifest(_Section):
    """Content of ``manifest.json``."""

    format: int = FORMAT
    layout: Layout
    images: int = Field(ge=0)
    regions: int = Field(ge=0)
    shards: list[ShardEntry]

    @property
    def keys_file(self) -> str:
        """The table of keys: renewed with each append, so that readers never see halves of two."""
        return f"keys-{len(self.shards):05}.arrow"


def shard_name(number: int) -> str:
    """Path of a shard within the store."""
    return f"{SHARDS}/{number:05}.arrow"


def checksum(content: bytes | pa.Buffer) -> str:
    """BLAKE2b of a file's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_manifest(files: StoreFiles) -> Manifest | None:
    """The manifest; None where there is none.

    Raises:
        DataError: it is damaged, or of a later version.
    """
    where = files.place(MANIFEST)
    try:
        found = Manifest.model_validate_json(files.read(MANIFEST))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"not the manifest of a region store: {place}: {first['msg']}", where=where) from error
    if found.format != FORMAT:
        raise DataError(f"format {found.format}, but this version reads {FORMAT}", where=where, hint="update mm-bert")
    return found


@dataclass(frozen=True)
class _Shard:
    """The columns of a shard as flat tensors over its regions; nothing is copied from the file.

    Attributes:
        bounds: first region of each image, and one past the last.
        sizes: [images, 2] width and height.
        class_ids, shares: [R, K]; rest: [R] what is left for the other classes together.
    """

    bounds: list[int]
    sizes: Tensor
    boxes: Tensor
    features: Tensor
    scales: Tensor | None
    class_ids: Tensor | None
    shares: Tensor | None
    rest: Tensor | None


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
            unfinished = bool(self._files.names(SHARDS))
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
        self._open: OrderedDict[int, _Shard] = OrderedDict()

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

    def _check_row(self, number: int, shard: _Shard, row: int) -> None:
        inside = 0 <= row < len(shard.sizes)
        if not inside or shard.bounds[row + 1] - shard.bounds[row] != int(self._table["regions"][number]):
            raise DataError(f"damaged: {self.keys[number]!r} is not where the keys say", where=self.path)

    def _shard(self, number: int) -> _Shard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self._entries[number]
        name = shard_name(number)
        self._open[number] = _columns(self._files.read_arrow(name, entry.bytes), self.layout, self._files.place(name))
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
            shard = self._shard(entry.number)
            if (len(shard.sizes), len(shard.boxes)) != (entry.images, entry.regions):
                raise DataError("other counts than the manifest says", where=self._files.place(name))
            progress(done)


def empty_table(rows: int, layout: Layout, *, classes: bool) -> RegionTable:
    """A table of so many regions whose numbers are still to be filled in."""
    return RegionTable(
        boxes=torch.empty(rows, 4),
        sizes=torch.empty(rows, 2),
        features=torch.empty(rows, layout.feature_size),
        classes=torch.empty(rows, layout.num_classes) if classes and layout.num_classes else None,
    )


def _columns(table: pa.Table, layout: Layout, where: str) -> _Shard:
    """The shard's columns, checked: a damaged file must not lead outside of them."""
    try:
        whole = table.combine_chunks()  # shards are one batch: no copy
        lists = {name: whole[name].chunk(0) for name in whole.column_names if pa.types.is_list(whole[name].type)}
        bounds = lists["boxes"].offsets.to_numpy()
        flat = {name: _flat(column) for name, column in lists.items()}
        sizes = np.stack([whole["width"].to_numpy(), whole["height"].to_numpy()], axis=1).astype(np.float32)
        shard = _Shard(
            bounds=bounds.tolist(),
            sizes=torch.from_numpy(sizes),
            boxes=_tensor(flat["boxes"], np.float32, 4),
            features=_tensor(flat["features"], _NUMBERS[layout.dtype], layout.feature_size),
            scales=_tensor(flat["scales"], np.float32) if layout.dtype == "int8" else None,
            class_ids=_tensor(flat["class_ids"], np.int32, layout.kept_classes) if layout.num_classes else None,
            shares=_tensor(flat["class_shares"], None, layout.kept_classes) if layout.num_classes else None,
            rest=_tensor(flat["class_rest"], np.float32) if layout.num_classes else None,
        )
    except (KeyError, IndexError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(f"damaged: {error}", where=where, hint="copy or make it again") from error
    lengths = {len(t) for t in (shard.boxes, shard.features, shard.scales, shard.class_ids, shard.shares, shard.rest)
               if t is not None}  # fmt: skip
    inside = bool((np.diff(bounds) >= 0).all()) and bounds[0] >= 0 and bounds[-1] <= min(lengths)
    if len(lengths) != 1 or not inside or len(bounds) != len(sizes) + 1:
        raise DataError("damaged: its columns do not fit together", where=where, hint="copy or make it again")
    if shard.class_ids is not None and len(shard.class_ids):
        low, high = int(shard.class_ids.min()), int(shard.class_ids.max())
        if low < 0 or high >= layout.num_classes:
            raise DataError(f"damaged: a class outside 0..{layout.num_classes - 1}", where=where)
    return shard


def _flat(column: Any) -> Any:
    """The numbers below a list column as [R] or [R, width], still in the file."""
    inner = column.values
    if not pa.types.is_fixed_size_list(inner.type):
        return inner.to_numpy(zero_copy_only=True)
    width = inner.type.list_size
    return inner.values.to_numpy(zero_copy_only=True).reshape(-1, width)


def _tensor(array: Any, dtype: Any, width: int | None = None) -> Tensor:
    if (dtype is not None and array.dtype != dtype) or array.shape[1:] != (() if width is None else (width,)):
        raise ValueError(f"a column holds {array.dtype} {list(array.shape)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is read-only, and nothing here writes to it
        return torch.from_numpy(array)
