"""Multimodal Lexical Translation: an ambiguous English word in a Multi30k caption, and its German or French words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, need
from mmbert.data.lines import Lines
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test_2016", "test_2017", "test_2018")
ROWS = {
    "de": {"train": 49626, "validation": 1775, "test_2016": 1004, "test_2017": 880, "test_2018": 357},
    "fr": {"train": 41191, "validation": 1427, "test_2016": 864, "test_2017": 929, "test_2018": 405},
}
MMBERT_ROWS = {"validation": 1062, "test_2016": 1004, "test_2018": 357}
CARD = CorpusCard(
    title="Multimodal Lexical Translation (Lala and Specia 2018)",
    where="https://github.com/sheffieldnlp/mlt; MM-BERT's JSON files: https://github.com/phaedonmit/VL-BERT",
    licence="names none; sentences are Multi30k's",
    size="de 53,642 and fr 44,816 rows; 4 MB",
    languages=("en", "de", "fr"),
    splits=SPLITS,
    counts={split: {"records": rows} for split, rows in ROWS["de"].items()},
    files=(
        "train, validation: enLANGUAGE_train.txt, enLANGUAGE_val.txt (plain or .gz, or below resolved/)",
        "test sets: enLANGUAGE_test2016.txt, enLANGUAGE_test2017flickr.txt, MLTtest2018enLANGUAGE.txt (or test_sets/)",
        "or with form=mmbert: train_MLT_frcnn.json, val_MLT_frcnn.json, test_MLT_frcnn.json, "
        "test_MLT_2018_renamed_frcnn.json (or below mmbert/)",
        "images=FOLDER: the Flickr30k images by file name (without it: text alone)",
    ),
)

_FILES = {
    "train": "en{}_train.txt", "validation": "en{}_val.txt", "test_2016": "en{}_test2016.txt",
    "test_2017": "en{}_test2017flickr.txt", "test_2018": "MLTtest2018en{}.txt",
}  # fmt: skip
_MMBERT_FILES = {
    "train": "train_MLT_frcnn.json", "validation": "val_MLT_frcnn.json", "test_2016": "test_MLT_frcnn.json",
    "test_2018": "test_MLT_2018_renamed_frcnn.json",
}  # fmt: skip
_FOLDERS = ("", "resolved/", "test_sets/", "mmbert/")


class Options(BaseModel):
    """Options of MLT.

    ``root``: the folder of the files. ``language``: that the word is translated to. ``form``: ``mlt``, or ``mmbert``
    for MM-BERT's JSON files (German only). ``images``: folder of the Flickr30k images.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str = "train"
    language: Literal["de", "fr"] = "de"
    form: Literal["mlt", "mmbert"] = "mlt"
    images: Path | None = None
    skip_bad: bool = False


class Row(NamedTuple):
    """One row of a file."""

    word: str
    translations: tuple[str, ...]
    english: str
    other: str
    image: str
    regions: str
    line: int


class MLTSource:
    """The rows of one split; ``annotation`` is ``{"word", "language", "translations"}``, any of which is right."""

    def __init__(self, options: Options, lines: Lines, rows: list[Row]) -> None:
        self.name = f"mlt:{options.split}"
        self.languages = ("en", options.language)
        self._options, self._lines, self._rows = options, lines, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        row, options = self._rows[index], self._options
        folder = options.images
        return Record(
            id=f"{options.split}:{row.line + 1}",
            image=ImageRef(path=str(folder.expanduser() / row.image), key=row.image) if folder is not None else None,
            captions={"en": (row.english,), options.language: (row.other,)},
            split=options.split,
            group=row.image,
            extra={"file_name": row.image},
            annotation={"word": row.word, "language": options.language, "translations": list(row.translations)},
            regions=row.regions,
            origin=self._lines.where(row.line),
        )


def open_source(options: Options, *, report: BadRecords | None = None) -> MLTSource:
    """Read one split.

    Raises:
        ConfigError: no such split, or MM-BERT's files in French.
        MissingFiles: the file is not there.
        DataError: a row is not what the format says, and not skipped; or there is none.
    """
    report = report or BadRecords(skip=options.skip_bad)
    files = _MMBERT_FILES if options.form == "mmbert" else _FILES
    if options.form == "mmbert" and options.language != "de":
        raise ConfigError("MM-BERT's files of MLT are German", hint="language=de, or form=mlt")
    if options.split not in files:
        raise ConfigError(f"MLT has no split {options.split!r} in this form", hint=f"splits: {', '.join(files)}")
    name = files[options.split].format(options.language)
    lines = Lines(need(options.root.expanduser(), CARD, *(folder + name for folder in _FOLDERS)))
    read = _json_row if options.form == "mmbert" else _row
    rows = []
    for number in range(len(lines)):
        try:
            text = lines[number]
            if text:
                rows.append(read(text, number, lines.where(number)))
        except DataError as error:
            report.add(error)
    if not rows:
        raise DataError("holds no rows", where=str(lines.path), hint="get the file again")
    return MLTSource(options, lines, rows)


def published(options: Options) -> Mapping[str, int]:
    """Rows of the split in this language and form."""
    rows = MMBERT_ROWS.get(options.split) if options.form == "mmbert" else ROWS[options.language].get(options.split)
    return {} if rows is None else {"records": rows}


def _row(text: str, line: int, where: str) -> Row:
    """``word | translation ... | English sentence | other sentence | image``."""
    cells = [cell.strip() for cell in text.split("|")]
    if len(cells) != 5:
        raise DataError(f"{len(cells)} columns where MLT has 5", where=where, hint="columns are divided by |")
    return _checked(Row(cells[0], tuple(cells[1].split()), cells[2], cells[3], cells[4], "", line), where)


def _json_row(text: str, line: int, where: str) -> Row:
    try:
        cells: Any = json.loads(text)
        image, frcnn = (_member(cells[key]) for key in ("image", "frcnn"))
        words = tuple(cells["word_de"].split())
        row = Row(cells["word_en"], words, cells["caption_en"], cells["caption_de"], image, frcnn, line)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"has no {error}" if isinstance(error, KeyError) else "is not an object with MM-BERT's keys"
        raise DataError(f"the line {why}", where=where) from error
    return _checked(row, where)


def _member(place: str) -> str:
    """``archive.zip@/name`` -> ``name``."""
    return place.rpartition("@/")[2]


def _checked(row: Row, where: str) -> Row:
    texts = (row.word, row.english, row.other, row.image)
    if not all(isinstance(text, str) and text.strip() for text in texts) or not row.translations:
        raise DataError("a column is empty", where=where)
    if PurePosixPath(row.image).name != row.image:
        raise DataError(f"{row.image!r} is not the name of a file", where=where)
    return row
