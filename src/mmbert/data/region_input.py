"""Images as precomputed regions: looked up in region stores by their keys, with no copy beyond the batch's table.

Stands where ``PixelInput`` stands, for models without a vision encoder (or in the place of a frozen one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmbert.data.images import AnyImage
from mmbert.data.records import BadRecords, ImageRef, Record, Source
from mmbert.errors import DataError
from mmbert.model.packed import RegionTable
from mmbert.vision.regions import mirrored_boxes
from mmbert.vision.store import RegionStore, empty_table


class RegionInput:
    """Regions of images from stores.

    Args:
        paths: one store or several; an image is taken from the first that has it.
        classes: also give class distributions, where the stores have them.

    Raises:
        DataError: a store cannot be opened, or one has regions of another encoder than the others.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], *, classes: bool = True) -> None:
        self.stores = [RegionStore(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        if not self.stores:
            raise DataError("no region store is named")
        self.layout = self.stores[0].layout
        self.classes = classes
        for store in self.stores[1:]:
            for name in ("encoder", "feature_size", "num_classes"):
                here, there = getattr(store.layout, name), getattr(self.layout, name)
                if here != there:
                    raise DataError(
                        f"{name.replace('_', ' ')} {here}, but {self.stores[0].path} has {there}",
                        where=store.path,
                        hint="stores that are used together are made by one encoder",
                    )

    def __contains__(self, key: str) -> bool:
        return any(key in store for store in self.stores)

    def count(self, image: AnyImage) -> int:
        """Regions of an image, the whole image counted.

        Raises:
            DataError: no store has the image.
        """
        return self._store(image.key).count(image.key)

    def boxes(self, image: AnyImage, size: tuple[int, int]) -> np.ndarray:
        """[n, 4] boxes of an image's regions, the whole image first.

        Args:
            image: found by its key.
            size: width and height of the image in whose pixels boxes are wanted: a store may be of one of another
                size.

        Raises:
            DataError: no store has the image, or its shard is damaged.
        """
        _, table, _ = self.table([image])
        scale = torch.tensor(size) / table.sizes[:1]
        return (table.boxes * scale.repeat(1, 2)).numpy()

    def table(
        self, images: Sequence[AnyImage], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Tensor | None]:
        """First rows and base table (in fp32) of ``images``; no pixels. ``rng`` is not needed.

        Of mirrored images the boxes are mirrored and the features stay, as in VL-BERT.

        Raises:
            DataError: no store has one of the images, or its shard is damaged.
        """
        stores = [self._store(image.key) for image in images]
        counts = [store.count(image.key) for store, image in zip(stores, images, strict=True)]
        first_rows: list[int] = np.cumsum([0, *counts]).tolist()
        table = empty_table(first_rows[-1], self.layout, classes=self.classes)
        for store in self.stores:
            mine = [(image.key, row) for s, image, row in zip(stores, images, first_rows, strict=False) if s is store]
            store.fill(table, mine)
        for image, row, count in zip(images, first_rows, counts, strict=False):
            if getattr(image, "flipped", False):  # but for the whole image
                seen = slice(row + 1, row + count)
                table.boxes[seen] = torch.from_numpy(
                    mirrored_boxes(table.boxes[seen].numpy(), float(table.sizes[row, 0]))
                )
        return first_rows, table, None

    def _store(self, key: str) -> RegionStore:
        return next((store for store in self.stores if key in store), self.stores[0])  # which names the missing key


class RecordsWithRegions:
    """A source whose images are found in region stores: a record's ``regions``, where it has them, is the key.

    Records without an image but with ``regions`` get one that only has this key.

    Args:
        source: the records.
        images: the stores.
        bad: decides about records whose image no store has; such are left out.

    Raises:
        DataError: no store has the image of a record, and ``bad`` does not skip; or no record is left.
    """

    def __init__(self, source: Source | Sequence[Record], images: RegionInput, bad: BadRecords) -> None:
        self.name = str(getattr(source, "name", "records"))
        self._source = source
        self._kept = [i for i in range(len(source)) if self._usable(with_region_key(source[i]), images, bad)]
        languages = (language for i in self._kept for language in source[i].languages)
        self.languages = tuple(dict.fromkeys(languages))
        if not self._kept:
            if not len(bad):
                bad.found.append((self.name, "there are no records"))
            raise bad.nothing_left()

    @staticmethod
    def _usable(record: Record, images: RegionInput, bad: BadRecords) -> bool:
        if record.image is None or record.image.key in images:
            return True
        where = images.stores[0].path + (" and others" if len(images.stores) > 1 else "")
        error = DataError(
            f"no regions of {record.image.key!r} in {where}",
            where=record.origin or record.id,
            hint="extract the image's features into the store",
        )
        bad.add(error)
        return False

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int, /) -> Record:
        return with_region_key(self._source[self._kept[index]])


def with_region_key(record: Record) -> Record:
    """The record with an image whose key is that of its regions."""
    if not record.regions:
        return record
    if record.image is None:
        return replace(record, image=ImageRef(data=b"", key=record.regions))
    return replace(record, image=replace(record.image, key=record.regions))
