"""Text files of corpora, plain or gzip: mapped, so that a line is read when it is asked for and millions cost little.

Files go in; numbered lines come out, and for files whose line i says the same thing, the numbers that all can use.
"""

from __future__ import annotations

import gzip
import html
import mmap
import re
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmbert.data.records import BadRecords
from mmbert.errors import DataError

_CHUNK = 1 << 24
_SMALL = 1 << 20
MAX_EXPANSION = 100
"""A gzip file that unpacks to more than this times its size (and 64 MB) is refused; text stays below 20."""


class Lines:
    """The lines of a file without the blanks around them; only line feeds end a line.

    Args:
        path: the file; ``.gz`` is unpacked into an unnamed temporary file.
        encoding: of the text; a byte order mark at the start is dropped.

    Raises:
        DataError: the file cannot be read or unpacked.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path = path
        self.encoding = encoding
        try:
            with path.open("rb") as file:
                if path.suffix == ".gz":
                    with _unpacked(file, path) as text:
                        self._data = _map(text)
                else:
                    self._data = _map(file)
        except (OSError, EOFError, zlib.error) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise DataError(f"cannot be read: {why}", where=str(path), hint="get the file again") from error
        self._bounds = _bounds(self._data)

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the file itself
        return type(self), (self.path, self.encoding)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> str:
        """Line ``number``, from 0.

        Raises:
            DataError: it is not in the encoding.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._line(number)

    def where(self, number: int) -> str:
        """File and line, from 1, for messages."""
        return f"{self.path}:{number + 1}"

    def _line(self, number: int) -> str:
        raw = self._data[self._bounds[number] : self._bounds[number + 1]]
        if number == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            return raw.decode(self.encoding).strip()
        except UnicodeDecodeError as error:
            where = f"{self.path}:{number + 1}"
            raise DataError(f"not {self.encoding.upper()}: {error.reason}", where=where) from error


class Segments(Lines):
    """The segments of an SGM file (WMT's test sets): ``<seg id="1">text</seg>``, each on a line of its own."""

    _SEGMENT = re.compile(r"<seg[^>]*>(.*)</seg>", re.IGNORECASE)

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        super().__init__(path, encoding)
        self._numbers = [n for n in range(super().__len__()) if self._line(n)[:4].lower() == "<seg"]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> str:
        found = self._SEGMENT.search(self._line(self._numbers[number]))
        if found is None:
            raise DataError("a segment without an end", where=self.where(number), hint="get the file again")
        return html.unescape(found[1]).strip()

    def where(self, number: int) -> str:
        """File and line, from 1, for messages."""
        return super().where(self._numbers[number])


def _unpacked(file: IO[bytes], path: Path) -> IO[bytes]:
    most = MAX_EXPANSION * path.stat().st_size + 64_000_000
    out = tempfile.TemporaryFile(prefix="mmbert-lines-")  # noqa: SIM115 (the mapping outlives it)
    written = 0
    try:
        with gzip.open(file) as packed:
            while chunk := packed.read(_CHUNK):
                written += len(chunk)
                if written > most:
                    raise DataError("unpacks to an absurd size", where=str(path), hint="get the file again")
                out.write(chunk)
        out.flush()
    except BaseException:
        out.close()
        raise
    return out


def _map(file: IO[bytes]) -> mmap.mmap | bytes:
    """The file's content; a mapping stays when the file is closed, but holds a descriptor: small files are read."""
    size = file.seek(0, 2)
    file.seek(0)
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size > _SMALL else file.read()


def _bounds(data: mmap.mmap | bytes) -> np.ndarray:
    """[lines + 1] int64: where each line starts, and where the last one ends."""
    starts = [np.zeros(1, dtype=np.int64)]
    for begin in range(0, len(data), _CHUNK):
        feeds = np.frombuffer(data[begin : begin + _CHUNK], dtype=np.uint8) == 10
        starts.append(np.flatnonzero(feeds) + begin + 1)
    bounds = np.concatenate(starts)
    return bounds if bounds[-1] == len(data) else np.append(bounds, len(data))


def aligned(columns: Mapping[str, Lines], report: BadRecords, *, blank_is_bad: bool = True) -> np.ndarray:
    """Numbers of the lines that have text in every column; lines blank in all are left out.

    Args:
        columns: files of one length by language.
        report: gets lines that cannot be read, and those blank in some columns only.
        blank_is_bad: False leaves the latter out without a word (corpora that are known to have them).

    Raises:
        DataError: files of different length, or a bad line that is not skipped.
    """
    first = next(iter(columns.values()))
    for lines in columns.values():
        if len(lines) != len(first):
            raise DataError(
                f"{len(lines):,} lines where {first.path} has {len(first):,}",
                where=str(lines.path),
                hint="the files do not belong together, or one is cut short: get them again",
            )
    kept = np.zeros(len(first), dtype=bool)
    for number in range(len(first)):
        try:
            empty = [lines for lines in columns.values() if not lines[number]]
            if blank_is_bad and 0 < len(empty) < len(columns):
                raise DataError("the line is blank, but not in the other languages", where=empty[0].where(number))
            kept[number] = not empty
        except DataError as error:
            report.add(error)
    return np.flatnonzero(kept)
