"""Any data set of the Hugging Face hub, or in its formats on disk, by naming its columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmbert.data.corpus import CorpusCard, Words
from mmbert.data.metadata import kind_of, language
from mmbert.data.records import UNDETERMINED, BadRecords, ImageRef, Record
from mmbert.errors import ConfigError, DataError

SPLITS = ()
CARD = CorpusCard(
    title="Data sets in the formats of the library datasets",
    where="https://huggingface.co/datasets, or a folder: saved by save_to_disk, or of Parquet, JSON Lines or CSV files",
    licence="the data set's own",
    size="as large as the data set: it is mapped, not read",
    files=("hub id or folder, with captions={LANGUAGE: COLUMN} and, with images, image=COLUMN",),
)


class Options(BaseModel):
    """Options of a data set; a column within a column is written with a dot (``translation.en``).

    ``root``: folder, file or hub id. ``config``, ``revision``: of a data set on the hub. ``split``: one that it has.
    ``captions``: language -> column, of text, lists of text, or (with language ``*``) texts by language. ``texts``:
    the same for text that is no caption. ``image``: column of images (or of paths, relative to ``images``). ``id``,
    ``group``: columns; where there is none, or nothing in it, the number of the row. ``extra``, ``annotation``:
    further columns to keep.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    captions: dict[str, str] = Field(default_factory=dict)
    texts: dict[str, str] = Field(default_factory=dict)
    image: str | None = None
    images: Path | None = None
    id: str | None = None
    group: str | None = None
    extra: Words = ()
    annotation: Words = ()
    skip_bad: bool = False

    @field_validator("captions", "texts", mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        return {UNDETERMINED: value} if isinstance(value, str) else value

    @field_validator("captions", "texts")
    @classmethod
    def _codes(cls, value: dict[str, str]) -> dict[str, str]:
        for code in value:
            if code != "*" and language(code) != code:
                raise ValueError(f"{code!r} is not a language code such as en or zh-Hant")
        return value


class HuggingFaceSource:
    """The rows of one split; a row becomes a record when it is asked for.

    Args:
        options: as opened.
        rows: the data set, images not decoded.
        kept: numbers of the usable rows.
    """

    def __init__(self, options: Options, rows: Any, report: BadRecords) -> None:
        self.name = f"{options.root}:{options.split}" if options.split else str(options.root)
        self._options, self._rows = options, rows
        looked_at = [*options.captions.values(), *options.texts.values(), *([options.id] if options.id else [])]
        columns = list(dict.fromkeys(column.partition(".")[0] for column in looked_at))
        slim = rows.select_columns(columns) if columns else None  # the images of all rows would be read, too
        taken: dict[str, int] = {}
        self._kept = []
        codes: dict[str, None] = {}
        for number in range(len(rows)):
            try:
                row = slim[number] if slim else {}
                said = [self._said(columns, row, number) for columns in (options.captions, options.texts)]
                if options.id:
                    identity = self._identity(row, number)
                    if identity in taken:
                        message = f"id {identity!r} is already that of row {taken[identity]}"
                        raise DataError(message, where=self._where(number), hint="ids must be unique")
                    taken[identity] = number
            except DataError as error:
                report.add(error)
            else:
                self._kept.append(number)
                codes.update(dict.fromkeys([*said[0], *said[1]]))
        if not self._kept:
            raise DataError("no usable record", where=self.name)
        self.languages = tuple(codes)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int, /) -> Record:
        number = self._kept[index]
        row, options, where = self._rows[number], self._options, self._where(number)
        group = _cell(row, options.group, where) if options.group else None
        return Record(
            id=self._identity(row, number),
            image=self._image(_cell(row, options.image, where), where) if options.image else None,
            captions=self._said(options.captions, row, number),
            texts=self._said(options.texts, row, number),
            split=options.split,
            group="" if group is None else str(group),
            extra={name: _cell(row, name, where) for name in options.extra},
            annotation={name: _cell(row, name, where) for name in options.annotation},
            origin=where,
        )

    def _identity(self, row: Mapping[str, Any], number: int) -> str:
        """What the column of ids says, else the number of the row."""
        options = self._options
        given = _cell(row, options.id, self._where(number)) if options.id else None
        if given is not None:
            return str(given)
        return f"{options.split}:{number}" if options.split else str(number)

    def _where(self, number: int) -> str:
        return f"{self.name} row {number}"

    def _said(self, columns: Mapping[str, str], row: Mapping[str, Any], number: int) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        where = self._where(number)
        for code, column in columns.items():
            value = _cell(row, column, where)
            by_code = value if code == "*" else {code: value}
            if not isinstance(by_code, Mapping):
                raise DataError(f"column {column!r} holds {kind_of(by_code)}, not texts by language", where=where)
            for key, texts in by_code.items():
                sentences = _sentences(texts, column, where)
                if sentences:
                    found[language(key) or key] = sentences
        if columns and not found:
            raise DataError(f"column {next(iter(columns.values()))!r} holds no text", where=where)
        return found

    def _image(self, value: Any, where: str) -> ImageRef:
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            return ImageRef(data=value["bytes"], key=where)
        path = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(path, str) or not path:
            raise DataError(f"column {self._options.image!r} holds {kind_of(value)}, not an image", where=where)
        folder = self._options.images
        return ImageRef(path=str(folder.expanduser() / path) if folder is not None else path)


def open_source(options: Options, *, report: BadRecords | None = None) -> HuggingFaceSource:
    """Open a split; nothing of it is executed, and images stay encoded.

    Raises:
        ConfigError: no such split or column.
        DataError: there is no such data set, it cannot be read, or a row has no text or the id of another, and
            is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    from datasets import Image

    rows = _split(_loaded(options), options)
    wanted = [*options.captions.values(), *options.texts.values(), *options.extra, *options.annotation]
    wanted += [column for column in (options.image, options.id, options.group) if column]
    if not wanted:
        raise ConfigError(
            "no column is named", hint=f"e.g. captions={{en: COLUMN}}; has {', '.join(rows.column_names)}"
        )
    for column in wanted:
        if column.partition(".")[0] not in rows.column_names:
            raise ConfigError(
                f"the data set has no column {column!r}", where=str(options.root), hint=", ".join(rows.column_names)
            )
    if options.image and isinstance(rows.features.get(options.image), Image):
        rows = rows.cast_column(options.image, Image(decode=False))
    return HuggingFaceSource(options, rows, report)


def find_splits(options: Options) -> list[str]:
    """Splits of the data set."""
    found = _loaded(options)
    return list(found) if isinstance(found, dict) else []


def _loaded(options: Options) -> Any:
    """A data set, or several by split."""
    import datasets

    root = options.root.expanduser()
    try:
        if root.is_file():
            kind = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}.get(root.suffix)
            if kind is None:
                raise DataError(f"{root.suffix or 'no'} is no format of a data set", where=str(root))
            return datasets.load_dataset(kind, data_files=str(root))
        if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
            return datasets.load_from_disk(str(root))
        return datasets.load_dataset(str(options.root), options.config, revision=options.revision)
    except (DataError, ConfigError):
        raise
    except Exception as error:  # the library raises many kinds
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"no usable data set: {message[:300]}", where=str(options.root)) from error


def _split(found: Any, options: Options) -> Any:
    if not isinstance(found, dict):
        return found
    splits = list(found)
    if options.split is None and len(splits) == 1:
        return found[splits[0]]
    if options.split not in found:
        raise ConfigError(f"the data set has no split {options.split!r}", hint=f"splits: {', '.join(splits)}")
    return found[options.split]


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"column {column!r} is not there", where=where)
        value = value[part]
    return value


def _sentences(value: Any, column: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"column {column!r} holds {kind_of(text)}, not text", where=where)
    return tuple(text.strip() for text in texts if text.strip())
