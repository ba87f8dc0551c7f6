"""Conceptual Captions: 3.3 million images of the web by their addresses, with their cleaned alt texts in English."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, need
from mmbert.data.lines import Lines
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.errors import ConfigError, DataError

SPLITS = ("train", "validation")
CARD = CorpusCard(
    title="Conceptual Captions (Sharma et al. 2018)",
    where="https://ai.google.com/research/ConceptualCaptions/download",
    licence="free to use, with acknowledgement; images: their owners'",
    size="3,334,173 addresses, 0.6 GB; images some 100 GB at 512 pixels, many links are dead",
    languages=("en",),
    splits=SPLITS,
    counts={"train": {"lines": 3318333}, "validation": {"lines": 15840}},
    files=(
        "Train_GCC-training.tsv and Validation_GCC-1.1.0-Validation.tsv (plain or .gz): caption TAB address",
        "images=FOLDER: the images, from `mmbert data download conceptual_captions` (without it: captions alone)",
    ),
)
_FILES = {"train": "Train_GCC-training.tsv", "validation": "Validation_GCC-1.1.0-Validation.tsv"}
_PER_FOLDER = 1000


class Options(BaseModel):
    """Options of Conceptual Captions.

    ``root``: folder of the two tables. ``images``: folder that the images were downloaded to; captions whose image is
    not there are left out and counted.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str = "train"
    images: Path | None = None
    skip_bad: bool = False


class ConceptualCaptionsSource:
    """The captions of one split, of those images that are there.

    Args:
        options: as opened.
        lines: of the table.
        rows: numbers of the lines that are used.
        counts: lines of the table, and how many have no image.
    """

    def __init__(self, options: Options, lines: Lines, rows: np.ndarray, counts: dict[str, int]) -> None:
        self.name = f"conceptual_captions:{options.split}"
        self.languages = ("en",)
        self.counts = counts
        self._options, self._lines, self._rows = options, lines, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        row = int(self._rows[index])
        where = self._lines.where(row)
        caption, url = _cells(self._lines[row], where)
        name = image_name(self._options.split, row)
        folder = self._options.images
        return Record(
            id=name,
            image=ImageRef(path=str(folder.expanduser() / name), key=name) if folder is not None else None,
            captions={"en": (caption,)},
            split=self._options.split,
            extra={"url": url},
            origin=where,
        )


def open_source(options: Options, *, report: BadRecords | None = None) -> ConceptualCaptionsSource:
    """Open one split; its table is mapped, and the folder of images is listed once.

    Raises:
        ConfigError: no such split.
        MissingFiles: the table is not there.
        DataError: a line is not caption and address, and not skipped; or no image is there.
    """
    report = report or BadRecords(skip=options.skip_bad)
    lines = _table(options)
    there = None if options.images is None else _listed(options.images.expanduser() / options.split)
    usable = np.zeros(len(lines), dtype=bool)
    absent = 0
    for row in range(len(lines)):
        try:
            _cells(lines[row], lines.where(row))
        except DataError as error:
            report.add(error)
            continue
        usable[row] = there is None or row in there
        absent += not usable[row]
    if not usable.any():
        hint = "run `mmbert data download conceptual_captions` first"
        raise DataError("none of the images is there", where=str(options.images or lines.path), hint=hint)
    counts = {"lines": len(lines)} | ({"without_image": absent} if there is not None else {})
    return ConceptualCaptionsSource(options, lines, np.flatnonzero(usable), counts)


def links(options: Options, report: BadRecords) -> Iterator[tuple[str, str, str]]:
    """What there is to download: (file name below the folder of images, address, file and line)."""
    lines = _table(options)
    for row in range(len(lines)):
        where = lines.where(row)
        try:
            yield image_name(options.split, row), _cells(lines[row], where)[1], where
        except DataError as error:
            report.add(error)


def image_name(split: str, row: int) -> str:
    """Where the image of a line (from 0) lies below the folder of images: ``train/00012/00012345.jpg``."""
    return f"{split}/{row // _PER_FOLDER:05d}/{row:08d}.jpg"


def _table(options: Options) -> Lines:
    if options.split not in _FILES:
        raise ConfigError(f"Conceptual Captions has no split {options.split!r}", hint=f"splits: {', '.join(SPLITS)}")
    return Lines(need(options.root.expanduser(), CARD, _FILES[options.split]))


def _cells(line: str, where: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != 2 or not all(cells):
        raise DataError("not a caption and an address with a tab between them", where=where)
    return cells[0], cells[1]


def _listed(folder: Path) -> set[int]:
    """Numbers of the lines whose image is there."""
    found = set()
    for _, _, names in os.walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 (millions of names)
            if suffix == ".jpg" and stem.isdecimal():
                found.add(int(stem))
    return found
