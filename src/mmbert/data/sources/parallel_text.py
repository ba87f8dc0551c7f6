"""Line-aligned text: line i of each language's file says the same thing (any pair, plain or gzip)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, Words, need_all
from mmbert.data.lines import Lines, aligned
from mmbert.data.records import BadRecords, Record
from mmbert.errors import ConfigError

SPLITS = ()
CARD = CorpusCard(
    title="Parallel corpora in line-aligned files",
    where="https://opus.nlpl.eu, https://www.statmt.org and others (europarl and wmt14 have cards of their own)",
    licence="the corpus's own",
    size="as large as the files: they are mapped, not read",
    files=("NAME.LANGUAGE or NAME.LANGUAGE.gz, with files=NAME[,NAME...] languages=LANGUAGE,LANGUAGE",),
)


class Options(BaseModel):
    """Options of line-aligned text.

    ``root``: folder. ``files``: names without ``.LANGUAGE``; several are read one after the other. ``languages``: two
    or more. ``split``: the split that all records are in. ``blank_is_bad``: a line that is blank in one language only
    is a bad record; False leaves it out and counts it.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str | None = None
    files: Words
    languages: Words
    blank_is_bad: bool = True
    skip_bad: bool = False


class ParallelSource:
    """Aligned lines of one or more groups of files, one after the other.

    Args:
        name: of the corpus.
        groups: language -> lines, for each group.
        split: that all records are in.
        report: gets bad lines.
        blank_is_bad: as for ``aligned``.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[dict[str, Lines]],
        split: str | None,
        report: BadRecords,
        *,
        blank_is_bad: bool,
    ) -> None:
        self.name = name
        self.languages = tuple(dict.fromkeys(code for group in groups for code in group))
        self._groups = list(groups)
        self._split = split
        self._rows = [aligned(group, report, blank_is_bad=blank_is_bad) for group in groups]
        self._ends = np.cumsum([len(rows) for rows in self._rows], dtype=np.int64)
        lines = sum(len(next(iter(group.values()))) for group in groups)
        self.counts = {"lines": lines, "lines_left_out": lines - len(self)}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._ends, index, side="right"))
        rows, group = self._rows[place], self._groups[place]
        row = int(rows[index - int(self._ends[place]) + len(rows)])
        first = next(iter(group.values()))
        where = f"{first.path.name}:{row + 1}"
        captions = {code: (lines[row],) for code, lines in group.items()}
        return Record(id=where, captions=captions, split=self._split, origin=first.where(row))


def open_source(options: Options, *, report: BadRecords | None = None) -> ParallelSource:
    """Open the files; every line is read once to find those that are usable.

    Raises:
        ConfigError: fewer than two languages, or no file named.
        MissingFiles: a file is not there.
        DataError: files of different length, or a bad line.
    """
    report = report or BadRecords(skip=options.skip_bad)
    if len(set(options.languages)) < 2 or not options.files:
        raise ConfigError("parallel text needs files=NAME and two languages", hint="e.g. files=train languages=en,de")
    groups = open_groups(options.root.expanduser(), options.files, options.languages, CARD)
    name = f"{options.root}/{options.files[0]}"
    return ParallelSource(name, groups, options.split, report, blank_is_bad=options.blank_is_bad)


def open_groups(root: Path, files: Sequence[str], languages: Sequence[str], card: CorpusCard) -> list[dict[str, Lines]]:
    """``NAME.LANGUAGE`` of each name and language.

    Raises:
        MissingFiles: naming all that are not there.
    """
    found = iter(need_all(root, card, [[f"{name}.{code}"] for name in files for code in languages]))
    return [{code: Lines(next(found)) for code in languages} for _ in files]
