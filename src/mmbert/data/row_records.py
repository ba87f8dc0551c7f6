"""One row of a user's metadata becomes one ``Record``: every rule about columns is here.

A row (from ``mmbert.data.metadata``) goes in; a record whose image file exists comes out, or a ``DataError``.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from mmbert import plugins
from mmbert.data import metadata
from mmbert.data.box_files import box_of
from mmbert.data.records import UNDETERMINED, ImageRef, Record, RegionBox
from mmbert.errors import DataError, ImageError

SPLIT_FOLDERS = ("train", "validation", "test")
"""A folder of this name right below the root gives its split to the records in it that state none."""

Texts = dict[str, tuple[str, ...]]


def record_of(root: Path, inside: str, where: str, row: Mapping[str, Any], origins: Mapping[str, str]) -> Record:
    """Make the record of one row.

    Args:
        root: the user's folder.
        inside: folder of the metadata file, relative to ``root``; image names are relative to it.
        where: file and line of the row.
        row: column -> value.
        origins: ids that are taken -> where they are.

    Raises:
        DataError: a value is not what its column needs. ImageError: the image is missing or outside of ``root``.
    """
    captions: Texts = {}
    texts: Texts = {}
    extra: dict[str, Any] = {}
    captioned = False
    for column in sorted(row, key=_place):
        value = row[column]
        role, language = _role(column)
        if role == "caption":
            captioned = True
            said = {language: value} if column != "captions" else {} if value is None else value
            _add(captions, said, column, where)
        elif role == "text":
            _add(texts, {language: value}, column, where)
        elif role == "misspelt":
            raise DataError(
                f"column {column!r} is not understood",
                where=where,
                hint="caption columns are caption, caption_<language code> and captions",
            )
        elif role == "extra":
            extra.update(_scalar(column, value, where))
    path = _image_path(root, inside, row.get("file_name"), where)
    boxes = _boxes(row.get("boxes"), where)
    group = _word(row.get("group"), "group", where) or path or ""
    split = _word(row.get("split"), "split", where) or folder_split(path or posixpath.join(inside, "metadata"))
    if path is None:
        if captions:
            raise DataError(
                "captions without an image: file_name is missing",
                where=where,
                hint=_meant("file_name", extra) or "name the image, or use text_<language code> for text alone",
            )
        if not texts:
            hint = _meant("file_name", extra) or "a record needs file_name or text_<language code>"
            raise DataError("the record has neither an image nor text", where=where, hint=hint)
        if boxes:
            raise DataError("boxes without an image: file_name is missing", where=where, hint="name the image")
        key = _identity(row, where, where, origins)
        return Record(id=key, captions=texts, split=split, group=group, extra=extra, origin=where)
    if captioned and not captions:
        raise DataError(
            "empty caption: every caption of the record is empty", where=where, hint="write one, or drop it"
        )
    key = _identity(row, path, where, origins)
    image = ImageRef(path=str(root / path), key=path)
    return Record(key, image, captions, texts, split, group=group, extra=extra, origin=where, boxes=boxes)


def _place(column: str) -> int:
    """Captions of one language keep one order, however the columns are ordered."""
    return 0 if column == "caption" else 2 if column == "captions" else 1


@lru_cache(maxsize=4096)
def _role(column: str) -> tuple[str, str]:
    """What a column is for, and its language: caption, text, known, extra or misspelt."""
    if column in ("file_name", "id", "split", "group", "boxes"):
        return "known", ""
    for kind in ("caption", "text"):
        if column == kind or (kind == "caption" and column == "captions"):
            return kind, UNDETERMINED
        language = metadata.language_of_column(column, kind)
        if language:
            return kind, language
    return ("misspelt" if column.lower().startswith("caption") else "extra"), ""


def _add(into: Texts, said: Any, column: str, where: str) -> None:
    if not isinstance(said, Mapping):
        raise DataError(
            f"column 'captions' holds {metadata.kind_of(said)}, not an object of language and captions",
            where=where,
            hint='write "captions": {"en": "a dog"}, or use the column caption',
        )
    for code, value in said.items():
        language = metadata.language(code) if isinstance(code, str) else None
        if language is None:
            raise DataError(
                f"{code!r} in column {column!r} is not a language code", where=where, hint="e.g. en, zh-Hant"
            )
        found = _sentences(value, column if column != "captions" else f"captions.{code}", where)
        if found:
            into[language] = into.get(language, ()) + found


def _sentences(value: Any, column: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    found = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(item, str):
            raise DataError(f"column {column!r} holds {metadata.kind_of(item)}, not text", where=where)
        sentence = item.strip()
        if not sentence:
            raise DataError(f"empty caption in column {column!r}", where=where, hint="write one, or leave the cell out")
        _check_whole(sentence, column, where)
        found.append(sentence)
    return tuple(found)


def _check_whole(text: str, column: str, where: str) -> None:
    if metadata.has_half_character(text):
        raise DataError(f"column {column!r} holds half a character (a lone surrogate)", where=where)


def check_name(path: str, where: str) -> None:
    """Whether the path of an image can be written down in an index or a store.

    Raises:
        DataError: its name is not UTF-8.
    """
    if metadata.has_half_character(path):
        hint = f"rename {shown(path)}; commands with --skip-bad leave it out"
        raise DataError("file name is not UTF-8", where=where, hint=hint)


def shown(path: str) -> str:
    """A path as it can be printed: ``caf\\udce9.png`` where a byte of it is not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def _boxes(value: Any, where: str) -> tuple[RegionBox, ...]:
    """Boxes of the image, in the order that the user gives them; its size is not known yet."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        hint = "write [[x1, y1, x2, y2], ...], in pixels"
        raise DataError(f"column 'boxes' holds {metadata.kind_of(value)}, not a list of boxes", where=where, hint=hint)
    return tuple(box_of(item, None, f"{where}:boxes[{number}]") for number, item in enumerate(value, 1))


def _scalar(column: str, value: Any, where: str) -> dict[str, Any]:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return {}  # an empty cell, as CSV and pandas write it
    if isinstance(value, str):
        _check_whole(value, column, where)
    if isinstance(value, (str, int, float)):
        return {column: value}
    raise DataError(
        f"column {column!r} holds {metadata.kind_of(value)}",
        where=where,
        hint="further columns may hold text, numbers or true/false; write it as text or leave it out",
    )


def _word(value: Any, column: str, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int) if column in ("id", "group") else str):
        raise DataError(f"column {column!r} holds {metadata.kind_of(value)}, not text", where=where)
    word = str(value).strip()
    if not word:
        raise DataError(f"column {column!r} is empty", where=where, hint="fill it or leave it out")
    _check_whole(word, column, where)
    return word


def _identity(row: Mapping[str, Any], default: str, where: str, origins: Mapping[str, str]) -> str:
    given = _word(row.get("id"), "id", where)
    if given is not None:
        if given in origins:
            raise DataError(f"id {given!r} is already that of {origins[given]}", where=where, hint="ids must be unique")
        return given
    key, count = default, 1
    while key in origins:  # an image may have one row for each caption
        count += 1
        key = f"{default}#{count}"
    return key


def _image_path(root: Path, inside: str, name: Any, where: str) -> str | None:
    """Path of the image relative to ``root``; None for a record without image."""
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise DataError(f"column 'file_name' holds {metadata.kind_of(name)}, not text", where=where)
    if name.startswith(("http://", "https://")):
        raise ImageError(f"{name} is not in the folder", where=where, hint="download the image into the folder first")
    path = image_key(inside, name)
    check_name(path, where)
    if name.startswith("/") or PureWindowsPath(name).drive or path.split("/")[0] == "..":
        raise ImageError(
            f"{name} lies outside the folder", where=where, hint="give paths relative to the metadata file"
        )
    if not os.path.isfile(root / path):  # noqa: PTH113 (Path.is_file raises on a null byte)
        what = f"{name} is a folder, not an image" if os.path.isdir(root / path) else f"no image {name}"  # noqa: PTH112
        raise ImageError(what, where=where, hint=_near(root, path) or "check file_name")
    return path


def image_key(inside: str, name: str) -> str:
    """Path relative to the root of an image that a metadata file in the folder ``inside`` calls ``name``."""
    return posixpath.normpath(posixpath.join(inside, name))


def _near(root: Path, path: str) -> str | None:
    if "\\" in path and (root / path.replace("\\", "/")).is_file():
        return "write the path with / instead of \\"
    try:
        beside = [other.name for other in (root / posixpath.dirname(path)).iterdir()]
    except (OSError, ValueError):
        return None
    name = plugins.nearest(posixpath.basename(path), beside) if len(beside) <= 500 else None
    return f"did you mean {name!r}?" if name else None


def _meant(column: str, extra: Mapping[str, Any]) -> str | None:
    close = plugins.nearest(column, extra)
    return f"did you mean {column!r} where it says {close!r}?" if close else None


def folder_split(path: str) -> str | None:
    """Split that a path relative to the root is in by its first folder."""
    first, below, _ = path.partition("/")
    return first if below and first in SPLIT_FOLDERS else None
