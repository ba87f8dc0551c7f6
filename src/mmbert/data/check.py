"""Checking a corpus before training on it: every record is read and every image opened fully.

A source goes in; counts, faults and doubtful things come out as one ``CheckResult``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from mmbert.data.metadata import SUFFIXES, is_table
from mmbert.data.records import BadRecords, ImageRef, Record, Source
from mmbert.data.row_records import shown
from mmbert.data.sources import open_data
from mmbert.data.sources.folder import FolderSource
from mmbert.data.sources.prepared import PreparedSource
from mmbert.errors import DataError, ImageError
from mmbert.vision.images import load_image

NO_SPLIT = "(none)"
LIKE_METADATA = (".json", ".tsv", ".txt", ".xlsx")
"""Files called metadata with these endings are not read, though somebody may think so."""
_CHUNK = 256  # images in flight at a time


@dataclass(slots=True)
class LanguageCount:
    """How much a corpus says in one language: captions, other texts, and the records that have any of them."""

    records: int = 0
    captions: int = 0
    texts: int = 0


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Width and height in pixels; ``median`` is of each side on its own."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Broken:
    """A record or image that cannot be used, and where it stands."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same image or caption in more than one split.

    Args:
        what: the images' keys, or the caption.
        splits: the splits.
    """

    what: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(slots=True)
class CheckResult:
    """What ``check`` found.

    Args:
        name: the corpus.
        records: usable records as far as the metadata goes (their images may be among ``broken``).
        images: distinct images that open.
        languages: language -> counts.
        splits: split -> records.
        sizes: sizes of the images that open; None without images.
        broken: records and images that cannot be used.
        duplicate_images: images of exactly the same pixels in more than one split.
        repeated_captions: captions in more than one split.
        warnings: doubtful, but usable.
    """

    name: str
    records: int = 0
    images: int = 0
    languages: dict[str, LanguageCount] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    sizes: ImageSizes | None = None
    broken: list[Broken] = field(default_factory=list)
    duplicate_images: list[Repeated] = field(default_factory=list)
    repeated_captions: list[Repeated] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing broken and no image in two splits."""
        return not self.broken and not self.duplicate_images

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ok": self.ok}


Progress = Callable[[int, int], None]


def check(spec: str | Mapping[str, Any], *, progress: Progress | None = None, **overrides: Any) -> CheckResult:
    """Check a corpus, going on after every fault.

    Args:
        spec: what ``open_data`` takes, most often the path of a folder.
        progress: called with (images opened, images in all).
        overrides: further options of the source.

    Raises:
        DataError: the corpus cannot be read at all (no such folder, metadata in two formats, nothing in it).
        ConfigError: unknown source or option.
    """
    bad = BadRecords(skip=True)
    try:
        source = open_data(spec, report=bad, **overrides)
    except DataError:
        if not len(bad):
            raise
        name = spec if isinstance(spec, str) else str(spec.get("root", spec))
        return CheckResult(name, broken=[Broken(*entry) for entry in bad])
    return check_source(source, bad=bad, progress=progress)


def check_source(source: Source, *, bad: BadRecords | None = None, progress: Progress | None = None) -> CheckResult:
    """Check an opened corpus; ``bad`` holds the records that were already left out when it was opened."""
    result = CheckResult(source.name, records=len(source), broken=[Broken(*entry) for entry in bad or ()])
    if isinstance(source, PreparedSource) and (faults := [Broken(*fault) for fault in source.faults()]):
        result.broken += faults  # what a damaged file says about its own layout is not to be trusted
        return result
    images: dict[str, _Image] = {}
    said: dict[tuple[str, str], set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for record in _records(source):
        split = record.split or NO_SPLIT
        counts[split] += 1
        _count_languages(result.languages, record)
        for language, captions in record.captions.items():
            for caption in captions:
                said[language, caption].add(split)
        if record.image is not None:
            image = images.setdefault(record.image.key, _Image(record.image, record.origin or record.id))
            image.splits.add(split)
    result.splits = dict(sorted(counts.items()))
    result.repeated_captions = [
        Repeated((caption,), tuple(sorted(splits))) for (_, caption), splits in said.items() if len(splits) > 1
    ]
    _open_all(list(images.values()), result, progress)
    result.warnings = _warnings(source, result)
    return result


@dataclass(slots=True)
class _Image:
    ref: ImageRef
    where: str
    splits: set[str] = field(default_factory=set)


def _records(source: Source) -> Iterator[Record]:
    return (source[i] for i in range(len(source)))


def _count_languages(counts: dict[str, LanguageCount], record: Record) -> None:
    for language in record.languages:
        count = counts.setdefault(language, LanguageCount())
        count.records += 1
        count.captions += len(record.captions.get(language, ()))
        count.texts += len(record.texts.get(language, ()))


def _open_all(images: Sequence[_Image], result: CheckResult, progress: Progress | None) -> None:
    sizes: list[tuple[int, int]] = []
    same: dict[bytes, list[_Image]] = defaultdict(list)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            for image, seen in zip(chunk, pool.map(_fingerprint, chunk), strict=True):
                if isinstance(seen, ImageError):
                    result.broken.append(_broken(image, seen))
                else:
                    size, digest = seen
                    sizes.append(size)
                    same[digest].append(image)
            if progress:
                progress(start + len(chunk), len(images))
    result.images = len(sizes)
    result.sizes = _sizes(sizes)
    for alike in same.values():
        splits = sorted(set().union(*(image.splits for image in alike)))
        if len(splits) > 1:
            result.duplicate_images.append(Repeated(tuple(image.ref.key for image in alike), tuple(splits)))


def _fingerprint(image: _Image) -> tuple[tuple[int, int], bytes] | ImageError:
    """Size and hash of the upright pixels (a file saved again without loss is still the same image)."""
    try:
        pixels = load_image(image.ref, where=image.ref.key)
    except ImageError as error:
        return error
    digest = hashlib.blake2b(repr(pixels.size).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return pixels.size, digest.digest()


def _broken(image: _Image, error: ImageError) -> Broken:
    key = image.ref.key
    return Broken(image.where, error.message if image.where == key else f"{key}: {error.message}")


def _sizes(sizes: list[tuple[int, int]]) -> ImageSizes | None:
    if not sizes:
        return None
    widths, heights = (sorted(side) for side in zip(*sizes, strict=True))
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    middle = len(sizes) // 2
    return ImageSizes(by_area[0], (widths[middle], heights[middle]), by_area[-1])


def _warnings(source: Source, result: CheckResult) -> list[str]:
    found = []
    silent = sum(record.image is not None and not record.captions for record in _records(source))
    if silent:
        found.append(f"{_number(silent, 'record')} with an image but no caption (fine for an index, not for training)")
    if silent and any(count.texts for count in result.languages.values()):
        found.append("columns named text are not captions of an image: name them caption or caption_<language>")
    if result.repeated_captions:
        found.append(f"{_number(len(result.repeated_captions), 'caption')} in more than one split")
    if isinstance(source, FolderSource):
        if unlisted := source.unlisted():
            found.append(f"{_number(len(unlisted), 'image')} in no usable record, e.g. {shown(unlisted[0])}")
        for path in sorted(source.root.iterdir()):
            like = path.stem.lower() == "metadata" and path.suffix.lower() in (*SUFFIXES, *LIKE_METADATA)
            if like and not is_table(path.name) and path.is_file():
                found.append(f"{path.name} is not read: captions belong into metadata.jsonl, .csv or .parquet")
    return found


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
