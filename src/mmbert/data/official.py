"""What corpora with images and structured annotations share: looking images up, checking boxes, rows as a source.

Between the official files (``mmbert.data.json_items`` reads them) and the records of ``mmbert.data.sources``.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

from mmbert import plugins
from mmbert.data.corpus import CorpusCard, MissingFiles
from mmbert.data.json_items import finite_numbers
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.errors import ConfigError, DataError, ImageError

OVERHANG = 2.0
"""Pixels by which a box may stick out of its image: rounding, or counting from 1. It is cut off; more is an error."""

COCO_FOLDERS = ("", "images", "coco", "images/mscoco/images")
"""Where folders such as ``train2014`` are looked for, below the folder of downloads."""

Box = tuple[float, float, float, float]
RowT = TypeVar("RowT")


class ImageOptions(BaseModel):
    """Options that these corpora share.

    ``root``: the folder of the official downloads. ``split``: one of the corpus's, or several joined by ``+``.
    ``images``: the folder of the images, where it is elsewhere. ``check_images: false`` does not look whether every
    image is there (for whoever has region features only). ``regions_by``: what a region store calls the images: their
    ``file``, or the number of the corpus (``image_id``), as features in bottom-up TSV files are kept.
    ``skip_bad`` leaves out what cannot be used.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str
    images: Path | None = None
    check_images: bool = True
    regions_by: Literal["file", "image_id"] = "file"
    skip_bad: bool = False

    @field_validator("root", "images")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.abspath(value.expanduser()))  # noqa: PTH100 (keeps links)


def chosen_splits(split: str, known: Sequence[str], corpus: str) -> tuple[str, ...]:
    """``"train+val"`` -> ``("train", "val")``.

    Raises:
        ConfigError: a split that the corpus does not have.
    """
    found = tuple(dict.fromkeys(part.strip() for part in split.split("+")))
    for part in found:
        if part not in known:
            close = plugins.nearest(part, known)
            hint = f"did you mean {close!r}?" if close else f"splits: {', '.join(known)}, joined by + if you like"
            raise ConfigError(f"{corpus} has no split {part!r}", hint=hint)
    return found


def coco_name(year: str, image_id: int) -> str:
    """File of a COCO image, e.g. ``train2014/COCO_train2014_000000000009.jpg``; since 2017 the number alone."""
    stem = f"{image_id:012d}" if year.endswith("2017") else f"COCO_{year}_{image_id:012d}"
    return f"{year}/{stem}.jpg"


class Images:
    """The image files of a corpus; each folder is listed once.

    Args:
        options: say where images are.
        card: for the hint where they are missing.
        below: folders below ``root`` to try, best first.
    """

    def __init__(self, options: ImageOptions, card: CorpusCard, below: Sequence[str] = ("",)) -> None:
        self._bases = [options.images] if options.images is not None else [options.root / name for name in below]
        self._check = options.check_images
        self._root = options.root
        self._card = card
        self._folders: dict[str, tuple[Path, frozenset[str]]] = {}

    def ref(self, name: str, where: str) -> ImageRef:
        """Where an image is; its key is ``name``.

        Args:
            name: relative path with ``/``.
            where: place of the record, for messages.

        Raises:
            MissingFiles: there is no such folder.
            ImageError: the name leaves the folder, or there is no such file.
        """
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ImageError(f"{name!r} lies outside the folder of images", where=where)
        folder, file = posixpath.split(name)
        base, listed = self._folders.get(folder) or self._list(folder)
        if self._check and file not in listed:
            raise ImageError(f"no image {name}", where=where, hint=f"looked in {base / folder}")
        return ImageRef(path=str(base / folder / file), key=name)

    def _list(self, folder: str) -> tuple[Path, frozenset[str]]:
        base = next((base for base in self._bases if (base / folder).is_dir()), None)
        if base is None and self._check:
            raise MissingFiles([f"{folder or self._bases[0].name}/ (images)"], self._root, self._card)
        base = base or self._bases[0]
        listed = frozenset(os.listdir(base / folder)) if self._check else frozenset()  # noqa: PTH208 (names alone)
        self._folders[folder] = base, listed
        return base, listed


def box_within(box: Box, size: tuple[int, int] | None, where: str) -> Box:
    """A box x1, y1, x2, y2, cut to the image.

    Args:
        size: width and height of the image, if known.

    Raises:
        DataError: the box has no area or lies outside of the image by more than ``OVERHANG`` pixels.
    """
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise DataError(f"box {_shown(box)} has no area", where=where)
    if size is None:
        return box
    width, height = size
    if min(x1, y1) < -OVERHANG or x2 > width + OVERHANG or y2 > height + OVERHANG:
        raise DataError(f"box {_shown(box)} lies outside of the image of {width}x{height}", where=where)
    cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise DataError(f"box {_shown(box)} lies outside of the image of {width}x{height}", where=where)
    return cut


def box_of_corner_and_size(values: Any, size: tuple[int, int] | None, where: str) -> Box:
    """A COCO box (x, y, width, height) as x1, y1, x2, y2 within the image.

    Raises:
        DataError: not four finite numbers, no area, or outside of the image.
    """
    numbers = finite_numbers(values, "the box", where)
    if len(numbers) != 4:
        raise DataError(f"the box has {len(numbers)} numbers, not 4", where=where)
    x, y, width, height = numbers
    return box_within((x, y, x + width, y + height), size, where)


def _shown(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


class CaptionRow(NamedTuple):
    """One image, its English captions, and boxes where the corpus has them."""

    image: ImageRef
    captions: tuple[str, ...]
    split: str
    annotation: dict[str, Any]
    origin: str
    size: tuple[int, int] | None = None
    boxes: tuple[RegionBox, ...] = ()

    def record(self) -> Record:
        """The record of the image."""
        return Record(
            id=self.image.key,
            image=self.image,
            captions={"en": self.captions},
            split=self.split,
            origin=self.origin,
            size=self.size,
            boxes=self.boxes,
            annotation=self.annotation,
        )


class RowSource(Generic[RowT]):
    """A source that keeps compact rows and makes a record when one is asked for.

    Args:
        name: of the corpus.
        languages: of its captions.
        rows: one for each record.
        make: row -> record.
        regions_by: as in ``ImageOptions``.
    """

    def __init__(
        self,
        name: str,
        languages: tuple[str, ...],
        rows: Sequence[RowT],
        make: Callable[[RowT], Record],
        regions_by: str = "file",
    ) -> None:
        self.name = name
        self.languages = languages
        self._rows = rows
        self._make = make
        self._by_number = regions_by == "image_id"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        record = self._make(self._rows[index])
        return replace(record, regions=str(record.annotation["image_id"])) if self._by_number else record


def some(rows: Sequence[RowT], report: BadRecords, where: str) -> Sequence[RowT]:
    """``rows``, of which there is at least one.

    Raises:
        DataError: there is none.
    """
    if rows:
        return rows
    if len(report):
        raise report.nothing_left(where)
    raise DataError("no records", where=where)
