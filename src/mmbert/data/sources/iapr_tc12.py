"""IAPR TC-12: 20,000 photographs from all over the world, described in English and German."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, MissingFiles, Words
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.errors import ConfigError, DataError

SPLITS = ()
SUFFIXES = {"en": "eng", "de": "ger"}
CARD = CorpusCard(
    title="The IAPR TC-12 Benchmark (Grubinger et al. 2006)",
    where="https://www.imageclef.org/photodata",
    licence="research; see its page",
    size="20,000 images; 1.8 GB",
    languages=tuple(SUFFIXES),
    counts={"all": {"records": 20000}},
    files=(
        "annotations_complete_eng/NN/NUMBER.eng and annotations_complete_ger/NN/NUMBER.ger (any folder names)",
        "images/NN/NUMBER.jpg (without them: text alone)",
    ),
)

_FIELD = re.compile(r"<(DOCNO|TITLE|DESCRIPTION|LOCATION|DATE|IMAGE)>(.*?)</\1>", re.DOTALL)
_LONGEST = 100_000


class Options(BaseModel):
    """Options of IAPR TC-12.

    ``root``: the unpacked benchmark. ``languages``: else both. ``images``: the folder that holds ``images``, else
    ``root`` where that has them. ``description``: ``whole``; ``first``: its first clause, which says what matters most;
    or ``clauses``: each clause is a caption (they are divided by ``;``). ``split``: the split that all records are in
    (the benchmark has none).
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str | None = None
    languages: Words = tuple(SUFFIXES)
    images: Path | None = None
    description: Literal["whole", "first", "clauses"] = "whole"
    skip_bad: bool = False


class Entry(NamedTuple):
    """One image's annotations: its path, descriptions and titles by language, and the first annotation's file."""

    image: str
    descriptions: dict[str, str]
    titles: dict[str, str]
    origin: str


class IAPRSource:
    """The images in order of their paths."""

    def __init__(self, options: Options, images: Path | None, entries: list[Entry]) -> None:
        self.name = "iapr_tc12"
        self.languages = tuple(code for code in options.languages if any(code in e.descriptions for e in entries))
        self._options, self._images, self._entries = options, images, entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int, /) -> Record:
        entry = self._entries[index]
        path = None if self._images is None else str(self._images / entry.image)
        return Record(
            id=entry.image,
            image=ImageRef(path=path, key=entry.image) if path is not None else None,
            captions={code: _captions(text, self._options.description) for code, text in entry.descriptions.items()},
            texts={code: (title,) for code, title in entry.titles.items()},
            split=self._options.split,
            extra={"file_name": entry.image},
            origin=entry.origin,
        )


def open_source(options: Options, *, report: BadRecords | None = None) -> IAPRSource:
    """Read all annotations. An image that is described in one language only has captions in that one.

    Raises:
        ConfigError: an unknown language.
        MissingFiles: there are no annotations in a language.
        DataError: an annotation is not as the format says, and not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    root = options.root.expanduser()
    found: dict[str, Entry] = {}
    for code in options.languages:
        if code not in SUFFIXES:
            raise ConfigError(f"IAPR TC-12 has no language {code!r}", hint=f"has {', '.join(SUFFIXES)}")
        empty = True
        for path in _annotations(root, f".{SUFFIXES[code]}"):
            empty = False
            try:
                image, title, description = _read(path)
            except DataError as error:
                report.add(error)
                continue
            entry = found.setdefault(image, Entry(image, {}, {}, str(path)))
            entry.descriptions[code] = description
            if title:
                entry.titles[code] = title
        if empty:
            raise MissingFiles([f"annotations_complete_{SUFFIXES[code]}/NN/NUMBER.{SUFFIXES[code]}"], root, CARD)
    if not found:
        raise DataError("no usable annotation", where=str(root), hint="get the benchmark again")
    images = options.images.expanduser() if options.images is not None else root if (root / "images").is_dir() else None
    return IAPRSource(options, images, [found[image] for image in sorted(found, key=_order)])


def published(options: Options) -> Mapping[str, int]:
    """All images, whatever the split is called."""
    return CARD.counts["all"]


def _annotations(root: Path, suffix: str) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            if name.endswith(suffix):
                yield Path(folder) / name


def _read(path: Path) -> tuple[str, str, str]:
    """Image path, title and description of one annotation (Latin-1, some tags, no real XML)."""
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("latin-1")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    fields = {tag: " ".join(html.unescape(value).split()) for tag, value in _FIELD.findall(text)}
    for tag in ("IMAGE", "DESCRIPTION"):
        if not fields.get(tag):
            raise DataError(f"has no <{tag}>, or an empty one", where=str(path))
    image = fields["IMAGE"]
    if image.startswith("/") or ".." in PurePosixPath(image).parts or "\\" in image:
        raise DataError(f"its image {image!r} lies elsewhere", where=str(path))
    if not _clauses(fields["DESCRIPTION"]):
        raise DataError("its <DESCRIPTION> says nothing", where=str(path))
    return image, fields.get("TITLE", ""), fields["DESCRIPTION"]


def _clauses(description: str) -> list[str]:
    return [clause.strip() for clause in description.split(";") if clause.strip()]


def _captions(description: str, kind: str) -> tuple[str, ...]:
    clauses = _clauses(description)
    return ("; ".join(clauses),) if kind == "whole" else tuple(clauses[:1] if kind == "first" else clauses)


def _order(image: str) -> tuple[int, str]:
    """By number: 9.jpg before 10.jpg."""
    stem = PurePosixPath(image).stem
    return (int(stem) if stem.isdecimal() else 0, image)
