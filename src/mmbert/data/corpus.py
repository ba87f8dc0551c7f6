"""What the files in ``data/sources`` share: a corpus's card, finding its downloads, counting, and what a store says.

A source is opened from the official downloads by its own file; ``mmbert.data.prepare`` turns it into a store and holds
its counts against those that the corpus's authors published.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from mmbert import __version__
from mmbert.data.records import Record
from mmbert.data.shards import Shard
from mmbert.errors import DataError

FORMAT = 1
"""Of a store; another format is refused."""


@dataclass(frozen=True, slots=True)
class CorpusCard:
    """What there is to know about a corpus before one has it.

    Args:
        title: its full name, with the paper.
        where: address of the page to get it from.
        licence: what its authors allow, in a few words.
        size: for people: how many records, how many bytes to download.
        languages: language codes; empty where the user's files decide.
        splits: names that ``split=`` takes.
        counts: split -> what -> published number. ``what`` is ``records``, ``images``, ``captions``,
            ``captions_<language>``, ``boxes``, or what the corpus file's own ``count`` tells.
        files: what has to lie in the folder of downloads.
    """

    title: str
    where: str
    licence: str
    size: str
    languages: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _words(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
"""Type of an option that may be a list, or words with blanks or commas between them."""


class MissingFiles(DataError):
    """Something that a corpus needs is not among the downloads.

    Args:
        missing: what, as paths relative to the folder of downloads.
    """

    def __init__(self, missing: Sequence[str], root: Path, card: CorpusCard) -> None:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        super().__init__(f"missing: {named}", where=str(root), hint=f"get it from {card.where}")
        self.missing = tuple(missing)


def find(root: Path, *names: str) -> Path | None:
    """The first of ``names`` that is a file or folder below ``root``, plain or with ``.gz`` behind it."""
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.exists():
                return path
    return None


def need_all(root: Path, card: CorpusCard, wanted: Iterable[Sequence[str]]) -> list[Path]:
    """For each of ``wanted`` (names, any of which will do) the file or folder that is there.

    Raises:
        MissingFiles: naming the first name of all that are not.
    """
    wanted = list(wanted)
    found = [find(root, *names) for names in wanted]
    missing = [names[0] for names, path in zip(wanted, found, strict=True) if path is None]
    if missing:
        raise MissingFiles(missing, root, card)
    return [path for path in found if path is not None]


def need(root: Path, card: CorpusCard, *names: str) -> Path:
    """The same for one."""
    return need_all(root, card, [names])[0]


class Counting:
    """Counts what goes by: ``records``, distinct ``images``, ``captions`` (in all and by language) and ``boxes``.

    Args:
        more: further counts of one record, if the corpus has any (``count`` of its file).
    """

    def __init__(self, more: Any = None) -> None:
        self._more = more
        self._counts: Counter[str] = Counter()
        self._images: set[bytes] = set()  # eight bytes for each, not their names: corpora have millions
        self.languages: dict[str, None] = {}

    def add(self, record: Record) -> None:
        """Count one record."""
        self._counts["records"] += 1
        if record.image is not None:
            self._images.add(hashlib.blake2b(record.image.key.encode(), digest_size=8).digest())
        for language, captions in record.captions.items():
            self._counts["captions"] += len(captions)
            self._counts[f"captions_{language}"] += len(captions)
        self._counts["boxes"] += len(record.boxes)
        self.languages.update(dict.fromkeys(record.languages))
        if self._more is not None:
            self._counts.update(self._more(record))

    def counts(self) -> dict[str, int]:
        """What was counted; what there is none of is left out, but for ``records``."""
        found = {"records": self._counts["records"], "images": len(self._images), **self._counts}
        return {what: number for what, number in found.items() if number or what == "records"}


@dataclass(frozen=True, slots=True)
class Difference:
    """A count that is not the published one."""

    split: str
    what: str
    found: int
    published: int

    def __str__(self) -> str:
        gap = self.found - self.published
        kind = f"{-gap:,} missing" if gap < 0 else f"{gap:,} extra"
        return f"{self.split}: {self.what} {self.found:,} instead of {self.published:,} ({kind})"


@dataclass(slots=True)
class PreparedSplit:
    """One split of a store.

    Args:
        counts: what was counted.
        published: what it was held against.
        languages: of its records.
        shards: its files.
    """

    counts: dict[str, int]
    published: dict[str, int]
    languages: list[str]
    shards: list[Shard]


@dataclass(slots=True)
class Prepared:
    """What ``corpus.json`` says.

    Args:
        corpus: the corpus's name.
        card: its card.
        options: what was asked for.
        images: folder that relative image paths start at (relative to the store where they were copied), or None.
        splits: name -> split.
        differences: counts that are not the published ones (only with ``allow_incomplete``).
        missing: what was not among the downloads (only with ``allow_incomplete``).
        left_out: bad records that were skipped.
        made_by: version of mm-bert.
        format: of the store.
    """

    corpus: str
    card: dict[str, Any]
    options: dict[str, Any]
    images: str | None
    splits: dict[str, PreparedSplit] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_out: int = 0
    made_by: str = __version__
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
