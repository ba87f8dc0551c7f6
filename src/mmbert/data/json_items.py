"""Large JSON files item by item: a path goes in, the items of its arrays come out, never the whole file at once.

The official annotation files hold one object with a few long arrays, or one long array; some are 500 MB of text, which
would take ten times as much as Python objects.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from mmbert.data.metadata import has_half_character, kind_of
from mmbert.errors import DataError

CHUNK = 1 << 20
MAX_ITEM = 1 << 26
"""Characters of the longest item that is read; anything longer is not an annotation of one image."""

_AFTER_VALUE = tuple(",:]} \t\r\n")


def json_items(path: Path) -> Iterator[tuple[str, int, Any]]:
    """The items of every array at the top of a JSON file, in the file's order.

    Args:
        path: UTF-8 text, plain or gzip (``.gz``).

    Yields:
        (key of the array, number of the item from 1, item); the key is ``""`` where the file is one array.
        What else the object holds comes as (key, 0, value).

    Raises:
        DataError: the file is missing, not UTF-8, cut short or not JSON; ``where`` tells the item.
    """
    try:
        with _opened(path) as file:
            yield from _Scanner(file, path).items()
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason}", where=str(path), hint="get the file again") from error
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint="get the file again") from error


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


class _Scanner:
    """Position in a JSON text that is read in chunks."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._ended = False
        self._place = ""
        self._decoder = json.JSONDecoder(parse_constant=self._no_constant)

    def items(self) -> Iterator[tuple[str, int, Any]]:
        if self._peek() == "[":
            yield from self._array("")
        elif self._take("{", "an object or an array"):
            first = True
            while self._goes_on("}", first):
                first = False
                key = self._value()
                if not isinstance(key, str):
                    self._fail(f"a key is {kind_of(key)}")
                self._take(":", "':'")
                if self._peek() == "[":
                    yield from self._array(key)
                else:
                    yield key, 0, self._value()
        self._place = ""
        if self._peek():
            self._fail("more text behind the end")

    def _array(self, key: str) -> Iterator[tuple[str, int, Any]]:
        self._at += 1
        number = 0
        while self._goes_on("]", number == 0):
            number += 1
            self._place = item_at(key, number)
            yield key, number, self._value()

    def _goes_on(self, end: str, first: bool) -> bool:
        """Whether another item follows; takes the comma before all but the first, or the bracket at the end."""
        if self._peek() == end:
            self._at += 1
            return False
        if not first:
            self._take(",", f"',' or {end!r}")
        return True

    def _peek(self) -> str:
        """The next character that is no white space, not taken; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, wanted: str, name: str) -> bool:
        found = self._peek()
        if found != wanted:
            self._fail(f"{name} expected, not {found!r}" if found else "cut short")
        self._at += 1
        return True

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                self._fail("nested too deeply")
            except json.JSONDecodeError as error:
                if not self._more():
                    self._fail(f"cut short, or {error.msg.lower()}")
            except ValueError as error:  # a number of more digits than Python converts
                self._fail(str(error))
            else:
                # A number may go on in the next chunk: 0 may be the start of 0.5.
                if self._text[end : end + 1] in _AFTER_VALUE or not self._more():
                    self._at = end
                    return value

    def _more(self) -> bool:
        """Read on; what was read as items is forgotten. An item that is not whole doubles the text held each time."""
        if self._ended:
            return False
        self._text = self._text[self._at :]
        self._at = 0
        if len(self._text) > MAX_ITEM:
            self._fail(f"an item of more than {MAX_ITEM:,} characters, or text that never ends")
        read = self._file.read(max(CHUNK, len(self._text)))
        self._ended = not read
        self._text += read
        return not self._ended

    def _no_constant(self, name: str) -> NoReturn:
        self._fail(f"{name} is not a number")

    def _fail(self, what: str) -> NoReturn:
        where = f"{self._path}:{self._place}" if self._place else str(self._path)
        raise DataError(f"not valid JSON: {what}", where=where, hint="get the file again")


def item_at(key: str, number: int) -> str:
    """``images[3]``: how messages call an item (numbers from 1)."""
    return f"{key}[{number}]"


def entry(item: Any, key: str, where: str) -> Any:
    """Value of a key that has to be there.

    Raises:
        DataError: ``item`` is no object, or lacks it.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{kind_of(item)} where an object with {key!r} belongs", where=where)
    if key not in item:
        raise DataError(f"{key!r} is missing", where=where, hint="is it the file of another corpus or version?")
    return item[key]


def text_entry(item: Any, key: str, where: str) -> str:
    """Text without the blanks around it.

    Raises:
        DataError: it is missing, something else, or blank.
    """
    value = entry(item, key, where)
    if not isinstance(value, str):
        raise DataError(f"{key!r} holds {kind_of(value)}, not text", where=where)
    if not value.strip():
        raise DataError(f"{key!r} is empty", where=where)
    if has_half_character(value):
        raise DataError(f"{key!r} holds half a character (a lone surrogate)", where=where)
    return value.strip()


def whole_number(item: Any, key: str, where: str, below: int | None = None) -> int:
    """A whole number, not negative.

    Args:
        below: it has to be smaller than this.

    Raises:
        DataError: it is missing, something else or out of range.
    """
    value = entry(item, key, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{key!r} holds {kind_of(value)}, not a whole number", where=where)
    if value < 0 or (below is not None and value >= below):
        limits = f"0..{below - 1}" if below is not None else "0 or more"
        raise DataError(f"{key!r} is {value}: out of range", where=where, hint=f"it should be {limits}")
    return value


def not_twice(what: str, key: int | str, taken: Container[int | str], where: str) -> None:
    """Refuse an entry whose key an earlier one has.

    Raises:
        DataError: ``what`` of this key is among those ``taken``.
    """
    if key in taken:
        raise DataError(f"{what} {key} is there twice", where=where)


def list_entry(item: Any, key: str, where: str, length: int | None = None) -> list[Any]:
    """A list.

    Args:
        length: number of items that it must have.

    Raises:
        DataError: it is missing, something else or of another length.
    """
    value = entry(item, key, where)
    if not isinstance(value, list):
        raise DataError(f"{key!r} holds {kind_of(value)}, not a list", where=where)
    if length is not None and len(value) != length:
        raise DataError(f"{key!r} has {len(value)} items, not {length}", where=where)
    return value


def finite_numbers(values: Any, what: str, where: str) -> tuple[float, ...]:
    """A list of finite numbers.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise DataError(f"{what} is {kind_of(values)}, not a list of numbers", where=where)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"{what} holds {kind_of(value)}, not a finite number", where=where)
    return tuple(float(value) for value in values)
