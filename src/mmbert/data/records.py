"""Records: what a corpus says about one image or one sentence, before any token exists.

First step of the flow: a source (``mmbert.data.sources``) goes in, typed ``Record`` objects come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmbert.errors import DataError

UNDETERMINED = "und"
"""Language key of a caption whose language nobody stated (the BCP 47 code for "undetermined")."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is; the pixels stay on disk, or encoded in ``data``.

    Args:
        path: the image file.
        data: encoded image bytes (WebP, PNG, JPEG, ...), for corpora that keep images in a table.
        key: identity of the image: equal keys mean the same image.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    key: str = ""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("an ImageRef needs either a path or data")
        if not self.key and self.path is not None:
            object.__setattr__(self, "key", self.path)


@dataclass(frozen=True, slots=True)
class RegionBox:
    """A box that the corpus itself gives (an object with its name, a detection), in pixels of the image.

    Args:
        box: x1, y1, x2, y2.
        name: what the corpus calls it, or "".
        polygons: outlines of the object, each a flat sequence x, y, x, y ...
        score: of a detector.
    """

    box: tuple[float, float, float, float]
    name: str = ""
    polygons: tuple[tuple[float, ...], ...] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a corpus.

    Args:
        id: unique within its source.
        image: the image, or None for text alone.
        captions: language -> captions; ``"und"`` where no language was given. For a record without image:
            the sentences that say the same thing in each language.
        texts: language -> text that belongs to the record but is not a caption of equal right
            (the starter corpus keeps keywords here).
        split: name of the split that the record is in, if any.
        group: records of one group show or say the same thing, so they are never negatives of each other;
            the id where nothing else is given.
        extra: other metadata columns (text and numbers), for filters.
        size: width and height of the image in pixels, where the corpus says it.
        boxes: boxes that come with the corpus, in its order (the whole image is not among them).
        annotation: what a task needs beyond captions (question and answers, an expression and the number of its box,
            a word and its translations); plain JSON values, named by the corpus's file in ``data/sources``.
        regions: key of the image's precomputed regions in a region store; "" takes the image's key.
        origin: file and line the record was read from, for messages.
    """

    id: str
    image: ImageRef | None = None
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: str | None = None
    group: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    size: tuple[int, int] | None = None
    boxes: tuple[RegionBox, ...] = ()
    annotation: Mapping[str, Any] = field(default_factory=dict)
    regions: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that the record has any caption or text in, captions' first."""
        return tuple(dict.fromkeys((*self.captions, *self.texts)))


@dataclass(slots=True)
class BadRecords:
    """What to do with a bad record, and the list of those met.

    Args:
        skip: True notes the record and goes on; False raises its error.
    """

    skip: bool = False
    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Note ``error`` as ``(where, message)``.

        Raises:
            DataError: ``error`` itself, unless ``skip``.
        """
        if not self.skip:
            error.skippable = True
            raise error
        self.found.append((error.where or "", error.message))

    def nothing_left(self, where: str = "") -> DataError:
        """The error that every record was bad; ``where`` names the corpus, where the first does not say its place."""
        place, message = self.found[0]
        return DataError(f"no usable record; the first: {message}", where=place or where, hint="mend it first")

    def __bool__(self) -> bool:  # an empty report is still a report
        return True

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.found)


class Source(Protocol):
    """An opened corpus: a sequence of records."""

    @property
    def name(self) -> str:
        """What to call the corpus in messages and reports."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that any record has a caption or text in."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class RecordList:
    """A source whose records are all at hand.

    Args:
        name: of the corpus.
        records: what it holds.
    """

    def __init__(self, name: str, records: Sequence[Record]) -> None:
        self.name = name
        self.languages = tuple(dict.fromkeys(language for record in records for language in record.languages))
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Record:
        return self._records[index]
