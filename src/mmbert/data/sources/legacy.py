"""VL-BERT's and MM-BERT's annotation files: JSON lines with captions, an image, and the key of its stored regions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from mmbert.data.archives import ArchivePath, ZippedImage
from mmbert.data.corpus import Words
from mmbert.data.metadata import language
from mmbert.data.records import UNDETERMINED, BadRecords, ImageRef, Record, RecordList
from mmbert.errors import DataError

LONGEST_LINE = 16 << 20


class Options(BaseModel):
    """Options of an annotation file.

    ``path``: the file. ``language``: of captions whose language the file does not state. ``languages``: keep only
    these. ``zipped``: images lie in zip archives; None looks for the archive. ``split``: of all records.
    """

    model_config = ConfigDict(extra="forbid")

    path: Path
    language: str = UNDETERMINED
    languages: Words | None = None
    zipped: bool | None = None
    split: str | None = None
    skip_bad: bool = False


def open_source(options: Options, *, report: BadRecords | None = None) -> RecordList:
    """Read an annotation file (images and features are not opened).

    Raises:
        DataError: no such file, no record, or a bad one that is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    records: list[Record] = []
    seen: Counter[str] = Counter()
    for where, row in read_rows(options.path, report):
        try:
            record = _record(options, where, row, seen)
        except DataError as error:
            report.add(error)
            continue
        if options.languages is None or record.captions:
            records.append(record)
    if not records:
        raise DataError("no usable record", where=str(options.path), hint="JSON lines, one record in each")
    return RecordList(str(options.path), records)


def read_rows(path: Path, report: BadRecords) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (``file:line``) and content of each line.

    Raises:
        DataError: no such file, or a line that is no JSON object and that ``report`` does not skip.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint="check the path") from error
    with file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise DataError("a line of more than 16 MB", where=where, hint="this is no annotation file")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                report.add(DataError(f"not JSON: {error}", where=where))
                continue
            if isinstance(row, dict):
                yield where, row
            else:
                report.add(DataError("not a JSON object", where=where))


def _record(options: Options, where: str, row: Mapping[str, Any], seen: Counter[str]) -> Record:
    captions = _captions(options, row, where)
    image_path, regions_path = (_path(row, name, where) for name in ("image", "frcnn"))
    if image_path is None and regions_path is None and not captions:
        raise DataError("neither captions nor an image", where=where)
    named = image_path or regions_path
    name = named.stem if named is not None else where
    seen[name] += 1
    return Record(
        id=name if seen[name] == 1 else f"{name}#{seen[name]}",
        image=None if image_path is None else _image(options, image_path),
        captions=captions,
        split=options.split,
        group=name,
        annotation=_words(row, where),
        regions="" if regions_path is None else regions_path.stem,
        origin=where,
    )


def _path(row: Mapping[str, Any], name: str, where: str) -> ArchivePath | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{name} is not a path", where=where)
    return ArchivePath.parse(value, where)


def _image(options: Options, path: ArchivePath) -> ImageRef:
    root = options.path.parent
    archive = path.zip_file(root)
    zipped = bool(path.archive) and (archive.is_file() if options.zipped is None else options.zipped)
    key = path.stem
    if zipped:
        return cast(ImageRef, ZippedImage(archive, path.member, key))
    return ImageRef(path=str(path.plain_file(root)), key=key)


def _captions(options: Options, row: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, value in row.items():
        if name == "caption":
            code: str | None = options.language
        elif name.startswith("caption_"):
            code = language(name.removeprefix("caption_"))
        else:
            continue
        if code is None:
            raise DataError(f"{name}: no such language", where=where)
        if options.languages is None or code in options.languages:
            found[code] = _texts(value, name, where)
    return found


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """A caption as a string, as a list of its tokens (no blank in any of them), or several captions."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise DataError(f"{name} is neither a text nor a list of texts", where=where)
    if isinstance(value, list) and not any(len(item.split()) > 1 for item in items):
        return (" ".join(items),)
    return tuple(item.strip() for item in items)


def _words(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Lexical translation: ``word_en`` and its translations ``word_de``, by language, each a list."""
    words: dict[str, list[str]] = {}
    for name, value in row.items():
        if not name.startswith("word_"):
            continue
        items = [value] if isinstance(value, str) else value
        code = language(name.removeprefix("word_"))
        if code is None or not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise DataError(f"{name} is neither a word nor a list of words", where=where)
        words[code] = items
    return {"words": words} if words else {}
