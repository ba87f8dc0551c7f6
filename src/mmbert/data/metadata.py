"""Metadata files of a user's folder: ``metadata.jsonl``, ``.csv`` or ``.parquet`` go in, plain rows come out.

A row is a dict of what the file says, with JSON's types; an empty cell of a table is None, as null is in JSON. All
three formats give the same rows for the same content.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from mmbert.data.records import BadRecords
from mmbert.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".parquet")

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_TRUTH = {"true": True, "True": True, "false": False, "False": False}

Row = dict[str, Any]


def is_table(name: str) -> bool:
    """Whether a file of this name is the metadata of its folder."""
    return name in [f"metadata{suffix}" for suffix in SUFFIXES]


def has_half_character(text: str) -> bool:
    """Whether there is a lone surrogate in it: JSON's ``\\ud800``, or a byte of a file name that is not UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def language(code: str) -> str | None:
    """``"pt_BR"`` -> ``"pt-BR"``; None where ``code`` is not shaped like a language code (BCP 47)."""
    if not _LANGUAGE.fullmatch(code):
        return None
    first, *rest = code.replace("_", "-").split("-")
    return "-".join([first.lower(), *rest])


def language_of_column(column: str, prefix: str) -> str | None:
    """Language of the column ``<prefix>_<language>``; None for any other column."""
    return language(column[len(prefix) + 1 :]) if column.startswith(f"{prefix}_") else None


def read_rows(path: Path, label: str, report: BadRecords) -> Iterator[tuple[str, Row]]:
    """Rows of one metadata file.

    Args:
        path: the file; its ending decides the format.
        label: what to call the file in messages.
        report: gets the rows that cannot be read.

    Yields:
        (``"label:line"``, row); in Parquet the line is the number of the row, from 1.

    Raises:
        DataError: the file cannot be read at all, or a row cannot and ``report`` does not skip.
    """
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    try:
        yield from read(path, label, report)
    except OSError as error:
        raise DataError(f"cannot be read: {error}", where=label) from error


def _read_jsonl(path: Path, label: str, report: BadRecords) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{label}:{number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text, object_pairs_hook=partial(_object, where))
                if not isinstance(row, dict):
                    raise DataError(f"holds {kind_of(row)}, not a JSON object", where=where)
            except UnicodeDecodeError as error:
                report.add(DataError(f"not UTF-8: {error.reason}", where=where, hint="save the file as UTF-8"))
            except (ValueError, RecursionError) as error:
                hint = "one complete JSON object on each line"
                report.add(DataError(f"not valid JSON: {_json_fault(error)}", where=where, hint=hint))
            except DataError as error:
                report.add(error)
            else:
                yield where, row


def _object(where: str, pairs: Sequence[tuple[str, Any]]) -> Row:
    """One JSON object, at any depth of a line."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{twice!r} is there twice in one object", where=where, hint="keep one; captions may be a list")
    return found


def _json_fault(error: Exception) -> str:
    """What is wrong, and at which character of the line (the parser alone would call every line "line 1")."""
    return f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _read_csv(path: Path, label: str, report: BadRecords) -> Iterator[tuple[str, Row]]:
    text = _decoded(path, label)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = _header(lines, label)
    rows: list[tuple[str, list[str]]] = []
    while True:
        first = lines.line_num + 1
        where = f"{label}:{first}"
        try:
            cells = next(lines)
        except StopIteration:
            break
        except csv.Error as error:
            if lines.line_num > first or "end of data" in str(error):
                raise _unclosed(text, first, label) from error
            report.add(DataError(f"not valid CSV: {error}", where=where, hint="check the quotes"))
            continue
        if cells and len(cells) != len(header):
            report.add(
                DataError(
                    f"{len(cells)} cells where the header has {len(header)}",
                    where=where,
                    hint="put text that holds commas in double quotes",
                )
            )
        elif cells:
            rows.append((where, cells))
    places = [where for where, _ in rows]
    columns = [_csv_column(name, [cells[i] for _, cells in rows], places) for i, name in enumerate(header)]
    for where, *values in zip(places, *columns, strict=True):
        faults = [value for value in values if isinstance(value, DataError)]
        if faults:
            report.add(faults[0])
        else:
            yield where, dict(zip(header, values, strict=True))


def _unclosed(text: str, first: int, label: str) -> DataError:
    """The fault of a quote that has swallowed lines: nobody knows how many records, so none of it may be skipped.

    Args:
        text: of the whole file.
        first: line that the record begins in.
    """
    opened, inside = first, False
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        for quote in re.finditer('"', line) if number >= first else ():
            inside = not inside
            if inside and line[: quote.start()][-1:] in ("", ","):  # else it is one written twice, or a stray one
                opened = number
    return DataError(
        "not valid CSV: a double quote opens here and is not closed",
        where=f"{label}:{opened}",
        hint='close it; a quote within text is written twice, as in "a ""red"" car"',
    )


def _decoded(path: Path, label: str) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8", where=f"{label}:{line}", hint="save the file as UTF-8") from error


def _header(lines: Iterator[list[str]], label: str) -> list[str]:
    where = f"{label}:1"
    try:
        header = [name.strip() for name in next(lines, [])]
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", where=where) from error
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise DataError("the cells are not separated by commas", where=where, hint="save it with commas, or as .jsonl")
    _unique(header, where)
    if "" in header:
        raise DataError("a column has no name", where=where)
    return header


def _unique(columns: Sequence[str], where: str) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"column {name!r} is there twice", where=where)


def _csv_column(name: str, cells: list[str], places: list[str]) -> list[Any]:
    """Cells in JSON's types: lists and objects in caption columns; numbers and true/false where a column has only such.

    A column keeps one type, so that a code like ``007`` stays text unless the whole column is numbers. A cell that its
    row cannot be read for is the error, whose place is the row's of ``places``.
    """
    return [None if cell == "" else value for cell, value in zip(cells, _typed(name, cells, places), strict=True)]


def _typed(name: str, cells: list[str], places: list[str]) -> Sequence[Any]:
    if name in ("file_name", "id", "split", "group"):
        return cells
    if name == "captions":
        return [_json_or_text(cell, "{", where) for cell, where in zip(cells, places, strict=True)]
    if name == "boxes":
        return [_json_or_text(cell, "[", where) for cell, where in zip(cells, places, strict=True)]
    if name in ("caption", "text") or language_of_column(name, "caption") or language_of_column(name, "text"):
        return [_texts_or_text(cell) for cell in cells]
    filled = [cell for cell in cells if cell != ""]
    if all(_INTEGER.fullmatch(cell) for cell in filled):
        return [int(cell or 0) for cell in cells]
    if all(_NUMBER.fullmatch(cell) for cell in filled):
        return [float(cell or 0) for cell in cells]
    if all(cell in _TRUTH for cell in filled):
        return [_TRUTH.get(cell) for cell in cells]
    return cells


def _json_or_text(cell: str, opening: str, where: str) -> Any:
    """JSON that begins so, the error where an object in it has a key twice, or else the cell."""
    if not cell.lstrip().startswith(opening):
        return cell
    try:
        return json.loads(cell, object_pairs_hook=partial(_object, where))
    except DataError as error:
        return error
    except (ValueError, RecursionError):
        return cell


def _texts_or_text(cell: str) -> Any:
    """A list of texts, or else the cell: a caption may well begin with a bracket."""
    value = _json_or_text(cell, "[", "")
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else cell


def _read_parquet(path: Path, label: str, report: BadRecords) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _unique(file.schema_arrow.names, label)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in _rows_of(batch):
                number += 1
                where = f"{label}:{number}"
                if row is None:
                    report.add(DataError("a map holds one key twice", where=where, hint="keep one of them"))
                else:
                    yield where, {key: _plain(value) for key, value in row.items()}
    except pa.ArrowException as error:
        raise DataError(f"not a whole Parquet file: {error}", where=label, hint="write it again") from error


def _rows_of(batch: Any) -> list[Row | None]:
    """The rows of a batch, maps as dicts; None for one with a map that has a key twice."""
    try:
        return list(batch.to_pylist(maps_as_pydicts="strict"))
    except KeyError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in _rows_of(batch.slice(i, 1))]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (date, datetime)) else value


def kind_of(value: Any) -> str:
    """A value's type in a user's words."""
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, (int, float)):
        return f"a number ({value})"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return "a list"
    return "nothing" if value is None else type(value).__name__
