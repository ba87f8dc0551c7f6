"""Several corpora one after the other, as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.data.records import BadRecords, Record, Source
from mmbert.data.sources import open_data


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

    Args:
        parts: the corpora.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self.name = " + ".join(part.name for part in parts)
        self.languages = tuple(dict.fromkeys(code for part in parts for code in part.languages))
        self._parts = list(parts)
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        return self._parts[place][index - self._ends[place] + len(self._parts[place])]


def open_source(options: Options, *, report: BadRecords | None = None) -> JoinedSource:
    """Open all parts.

    Raises:
        MMBertError: whatever a part raises.
    """
    return JoinedSource([open_data(_of_split(part, options), report=report) for part in options.parts])


def _of_split(part: str | dict[str, Any], options: Options) -> str | dict[str, Any]:
    """The part, of the split that all are."""
    if isinstance(part, str) or options.split is None or "split" in part:
        return part
    return part | {"split": options.split}
