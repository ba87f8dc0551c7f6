"""The user's own data: a folder of images, with captions in ``metadata.jsonl``, ``.csv`` or ``.parquet``.

Follows the ``imagefolder`` convention of Hugging Face ``datasets``; ``docs/own-data.md`` describes it for users.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mmbert.data import metadata
from mmbert.data.corpus import Words
from mmbert.data.records import BadRecords, ImageRef, Record, RecordList
from mmbert.data.row_records import check_name, folder_split, image_key, record_of, shown
from mmbert.errors import DataError
from mmbert.vision.images import IMAGE_SUFFIXES


class Options(BaseModel):
    """Options of a folder.

    ``root``: the folder. ``split``, ``languages``: keep only these. ``skip_bad``: leave out what cannot be used.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str | None = None
    languages: Words | None = None
    skip_bad: bool = False


class FolderSource(RecordList):
    """The records of one folder.

    Args:
        root: the folder.
        records: what it holds, after the filters.
        bad: the records that were left out because they cannot be used.
        listed: images of all usable records, whatever the filters, relative to ``root``.
        refused: images that rows name which cannot be used; None among them: there are rows of which nobody knows.
    """

    def __init__(
        self,
        root: Path,
        records: list[Record],
        bad: BadRecords,
        listed: frozenset[str],
        refused: frozenset[str | None] = frozenset(),
    ) -> None:
        super().__init__(str(root), records)
        self.root = root
        self.bad = bad
        self.listed = listed
        self._refused = refused

    def unlisted(self) -> list[str]:
        """Images of the folder that are in no usable record, whatever the filters, relative to the root."""
        return [path for path in list_images(self.root) if path not in self.listed]

    def may_be_refused(self, image: str) -> bool:
        """Whether an image without usable record is in the folder, and a row that is refused names it or may do so."""
        return (image in self._refused or None in self._refused) and (self.root / image).is_file()


def open_source(options: Options, *, report: BadRecords | None = None) -> FolderSource:
    """Read and check the metadata of a folder (images must exist; they are not opened).

    Raises:
        DataError: no such folder, no record, or a bad one that is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    root = Path(os.path.abspath(options.root.expanduser()))  # noqa: PTH100 (resolve() would follow links)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(what, where=str(options.root), hint="give the folder that holds the images and their metadata")
    images, tables = _contents(root)
    refused: set[str | None] = set()
    records = list(_from_tables(root, tables, report, refused) if tables else _from_images(root, images, report))
    if not records:
        raise _nothing(options.root, tables, report)
    listed = frozenset(record.image.key for record in records if record.image is not None)
    records = _with_languages(_with_split(records, options), options)
    return FolderSource(root, records, report, listed, frozenset(refused))


def list_images(root: Path) -> list[str]:
    """Paths of all images below ``root``, relative to it, sorted; hidden files and folders are left out."""
    return _contents(root)[0]


def _contents(root: Path) -> tuple[list[str], list[str]]:
    """Images and metadata files below ``root`` as sorted relative paths with ``/``."""
    images: list[str] = []
    tables: list[str] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename), hint="check its permissions")

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would never end
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        for name in names:
            path = posixpath.normpath(posixpath.join(inside, name))
            if metadata.is_table(name):
                tables.append(path)
            elif posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                images.append(path)
    return sorted(images), sorted(tables)


def _from_images(root: Path, images: Iterable[str], report: BadRecords) -> Iterator[Record]:
    for path in images:
        try:
            check_name(path, shown(path))
        except DataError as error:
            report.add(error)
        else:
            image = ImageRef(path=str(root / path), key=path)
            yield Record(id=path, image=image, split=folder_split(path), origin=path)


def _from_tables(root: Path, tables: list[str], report: BadRecords, refused: set[str | None]) -> Iterator[Record]:
    """Records of the metadata; ``refused`` gets the images of rows that cannot be used, None where a row tells none."""
    one_of: dict[str, str] = {}
    for table in tables:
        other = one_of.setdefault(posixpath.dirname(table), table)
        if other != table:
            raise DataError(
                f"metadata in two formats: {shown(other)} and {shown(table)}", where=str(root), hint="keep one of them"
            )
    origins: dict[str, str] = {}
    before, unusable = len(report), 0
    for table in tables:
        inside = posixpath.dirname(table)
        for where, row in metadata.read_rows(root / table, shown(table), report):
            try:
                record = record_of(root, inside, where, row, origins)
            except DataError as error:
                report.add(error)
                name = row.get("file_name")
                refused.add(image_key(inside, name) if isinstance(name, str) and name else None)
                unusable += 1
            else:
                origins[record.id] = where
                yield record
    if len(report) - before > unusable:  # rows that cannot even be read
        refused.add(None)


def _with_split(records: list[Record], options: Options) -> list[Record]:
    if options.split is None:
        return records
    found = [record for record in records if record.split == options.split]
    if not found:
        known = sorted({record.split for record in records if record.split is not None})
        raise DataError(
            f"no record is in split {options.split!r}",
            where=str(options.root),
            hint=f"splits: {', '.join(known)}" if known else "the folder states no splits",
        )
    return found


def _with_languages(records: list[Record], options: Options) -> list[Record]:
    """Leave out other languages, and records that have words but none in these languages."""
    if options.languages is None:
        return records
    known = list(dict.fromkeys(language for record in records for language in record.languages))
    for language in options.languages:
        if language not in known:
            hint = f"languages: {', '.join(known)}" if known else "the folder has no captions"
            raise DataError(f"no caption is in language {language!r}", where=str(options.root), hint=hint)
    kept = []
    for record in records:
        captions = {code: record.captions[code] for code in options.languages if code in record.captions}
        texts = {code: record.texts[code] for code in options.languages if code in record.texts}
        if captions or texts or not record.languages:
            kept.append(replace(record, captions=captions, texts=texts))
    return kept


def _nothing(root: Path, tables: list[str], report: BadRecords) -> DataError:
    if len(report):
        return report.nothing_left(str(root))
    if tables:
        return DataError(
            "no records: the metadata is empty", where=f"{root}/{tables[0]}", hint="one record for each image"
        )
    return DataError(
        "no records: neither images nor metadata", where=str(root), hint="put images there; docs/own-data.md shows how"
    )
