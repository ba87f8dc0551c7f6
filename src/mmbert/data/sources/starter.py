"""The starter corpus that ships with the package: emoji drawings with their names in many languages.

Two Parquet files: ``concepts`` (names and keywords by language) and ``drawings`` (one 96x96 WebP for each style).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, field_validator

from mmbert import plugins
from mmbert.data.corpus import Words
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.errors import ConfigError, DataError

LANGUAGES = (
    "en",
    "de",
    "fr",
    "cs",
    "es",
    "it",
    "pt",
    "nl",
    "pl",
    "ru",
    "uk",
    "tr",
    "ar",
    "he",
    "fa",
    "hi",
    "bn",
    "zh",
    "ja",
    "ko",
    "vi",
    "id",
    "sw",
    "el",
)
STYLES = ("twemoji", "noto", "fluent")
DRAWING_SPLITS = ("train", "validation", "heldout_style", "heldout_concepts")
SPLITS = (*DRAWING_SPLITS, "all", "text")


class Options(BaseModel):
    """Options of the starter corpus.

    ``split``: a split of the drawings, ``all`` drawings, or ``text`` (names and keywords of every concept, no images);
    ``SPLIT/STYLE`` keeps one style. ``languages``: which ones, else the 24 (``locales: all``: every one it has).
    ``styles``: which drawings to keep. ``undrawn``: with ``text``, only the concepts whose drawings are held out.
    """

    model_config = ConfigDict(extra="forbid")

    split: str = "train"
    languages: Words | None = None
    styles: Words | None = None
    locales: Literal[24, "all"] = 24
    undrawn: bool = False

    @field_validator("locales", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return 24 if value == "24" else value


def folder() -> Path:
    """Where the two files of the corpus are installed."""
    return Path(str(files("mmbert"))) / "assets" / "starter"


def open_source(options: Options, *, report: BadRecords | None = None) -> StarterSource:
    """Open one split of the corpus; rows become records only when asked for.

    Raises:
        ConfigError: unknown split, style or language.
        DataError: the installed files are missing or nothing is left after the filters.
    """
    split, _, style = options.split.partition("/")
    styles = options.styles
    if style:
        styles = tuple(s for s in styles if s == style) if styles is not None else (style,)
    _known("split", [split], SPLITS)
    _known("style", [*(styles or ()), *([style] if style else [])], STYLES)
    concepts = _table("concepts", None)
    if options.undrawn:
        if split != "text":
            raise ConfigError("undrawn concepts have no drawings", hint="split: text")
        concepts = concepts.filter(concepts["held_out"]).combine_chunks()
    rows = None if split == "text" else _rows(split, styles)
    if rows is not None and not len(rows):
        raise DataError(f"the starter corpus has no drawing in split {options.split!r} with styles {styles}")
    return StarterSource(split, concepts, rows, _languages(options, concepts))


def _known(what: str, given: list[str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            close = plugins.nearest(name, known)
            raise ConfigError(
                f"the starter corpus has no {what} {name!r}",
                hint=f"did you mean {close!r}?" if close else f"known: {', '.join(known)}",
            )


def _table(name: str, columns: list[str] | None) -> pa.Table:
    path = folder() / f"{name}.parquet"
    if not path.is_file():
        raise DataError("the starter corpus is not installed", where=str(path), hint="install mmbert again")
    try:
        return pq.read_table(path, columns=columns, memory_map=True)  # type: ignore[no-untyped-call]
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise DataError(f"damaged: {error}", where=str(path), hint="install mmbert again") from error


def _rows(split: str, styles: tuple[str, ...] | None) -> pa.Table:
    table = _table("drawings", ["codepoints", "style", "image", "splits"])
    drawn, splits = table["style"].to_pylist(), table["splits"].to_pylist()
    keep = [
        row
        for row, (style, in_splits) in enumerate(zip(drawn, splits, strict=True))
        if (split == "all" or split in in_splits) and (styles is None or style in styles)
    ]
    return table.select(["codepoints", "style", "image"]).take(pa.array(keep, pa.int64())).combine_chunks()


def _languages(options: Options, concepts: pa.Table) -> tuple[str, ...]:
    if options.languages is None and options.locales == 24:
        return LANGUAGES
    names = concepts["names"].combine_chunks()
    present = tuple(sorted(set(names.keys.to_pylist())))
    if options.languages is None:
        return present
    _known("language", list(options.languages), present)
    return tuple(dict.fromkeys(options.languages))


class StarterSource:
    """The records of one split: one for each drawing, or one for each concept (``text``)."""

    def __init__(self, split: str, concepts: pa.Table, drawings: pa.Table | None, languages: tuple[str, ...]) -> None:
        self.name = f"starter:{split}"
        self.languages = languages
        self._split = split
        self._concepts = concepts
        self._drawings = drawings
        self._row_of = {key: row for row, key in enumerate(concepts["codepoints"].to_pylist())}
        self._said: dict[int, tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]] = {}

    def __len__(self) -> int:
        return len(self._concepts if self._drawings is None else self._drawings)

    def __getitem__(self, index: int, /) -> Record:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._drawings is None:
            codepoints = self._concepts["codepoints"][index].as_py()
            return self._record(codepoints, codepoints, None, None)
        codepoints = self._drawings["codepoints"][index].as_py()
        style = self._drawings["style"][index].as_py()
        key = f"{codepoints}/{style}"
        return self._record(key, codepoints, style, ImageRef(data=self._drawings["image"][index].as_py(), key=key))

    def _record(self, key: str, codepoints: str, style: str | None, image: ImageRef | None) -> Record:
        row = self._row_of[codepoints]
        captions, texts = self._words(row)
        extra = {
            "concept": self._concepts["concept"][row].as_py(),
            "held_out": self._concepts["held_out"][row].as_py(),
        }
        return Record(
            id=key,
            image=image,
            captions=captions,
            texts=texts,
            split=self._split,
            group=codepoints,
            extra=extra if style is None else {"style": style, **extra},
            origin=f"{self.name} {key}",
        )

    def _words(self, row: int) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        if row not in self._said:  # converting all at once would cost most of the time that opening takes
            names = dict(self._concepts["names"][row].as_py())
            keywords = dict(self._concepts["keywords"][row].as_py())
            self._said[row] = (
                {lang: (names[lang],) for lang in self.languages if names.get(lang)},
                {lang: tuple(keywords[lang]) for lang in self.languages if keywords.get(lang)},
            )
        return self._said[row]
