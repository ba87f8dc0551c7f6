"""Several corpora one after the other, as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.data.images import identity
from mmbert.data.records import BadRecords, Record, Source
from mmbert.data.sources import open_data, parse_data


class Options(BaseModel):
    """Options of joined corpora.

    ``parts``: corpora, each by its options or in one word. ``root``: what ``{root}`` in them stands for. ``split``: of
    every part that does not say another.
    """

    model_config = ConfigDict(extra="forbid")

    parts: list[str | dict[str, Any]] = Field(min_length=1)
    root: Path | None = None
    split: str | None = None


class JoinedSource:
    """Records of the first part, then those of the second, and so on.

    What a part calls by a name by which an earlier part calls something else would become one with it: two folders that
    have a ``0.png`` each. The ids, groups and image keys of such a part get its number before them: ``2/0.png``.

    Args:
        parts: the corpora.
        splits: of each part, which of its splits were asked for, if any.
    """

    def __init__(self, parts: Sequence[Source], splits: Sequence[str | None]) -> None:
        self.name = " + ".join(part.name for part in parts)
        self.languages = tuple(dict.fromkeys(code for part in parts for code in part.languages))
        self.parts = list(parts)
        self.splits = list(splits)
        self._ends = list(accumulate(map(len, parts)))
        self._renamed = _renamed(parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        record = self.parts[place][index - self._ends[place] + len(self.parts[place])]
        return _numbered(record, place + 1) if self._renamed[place] else record


def _renamed(parts: Sequence[Source]) -> list[bool]:
    """Of each part, whether one of its names means something else in an earlier one."""
    meant = dict[tuple[str, str], str]()
    found = []
    for place, part in enumerate(parts):
        own = dict[tuple[str, str], str]()
        for number in range(len(part)):
            record = part[number]
            # The same picture is the same thing; a text is none but itself.
            thing = f"{place}:{number}" if record.image is None else identity(record.image)
            own["id", record.id] = thing
            if record.image is not None:
                own["key", record.image.key] = thing
        found.append(any(meant.get(name, thing) != thing for name, thing in own.items()))
        if not found[-1]:
            meant.update(own)
    return found


def _numbered(record: Record, number: int) -> Record:
    image = record.image
    if image is not None:
        image = replace(image, key=f"{number}/{image.key}")
    return replace(record, id=f"{number}/{record.id}", group=f"{number}/{record.group}", image=image)


def open_source(options: Options, *, report: BadRecords | None = None) -> JoinedSource:
    """Open all parts.

    Raises:
        MMBertError: whatever a part raises.
    """
    parts = [_of_split(part, options) for part in options.parts]
    splits = [part.get("split") for part in parts]
    return JoinedSource([open_data(part, report=report) for part in parts], splits)


def _of_split(part: str | dict[str, Any], options: Options) -> dict[str, Any]:
    """The part's options, of the split that all are."""
    named = parse_data(part) if isinstance(part, str) else part
    return named if options.split is None or named.get("split") is not None else named | {"split": options.split}
