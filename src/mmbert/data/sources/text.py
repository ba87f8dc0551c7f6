"""Text alone: one sentence a line, or line-aligned files that say the same thing in several languages."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator

from mmbert.data.corpus import Words
from mmbert.data.metadata import language
from mmbert.data.records import UNDETERMINED, BadRecords, Record
from mmbert.errors import DataError


class Options(BaseModel):
    """Options of text files.

    ``path``: one file, in ``language``; or ``paths``: ``{language: file}``, line i of each says the same thing.
    ``languages``: keep only these of ``paths``. ``split``: the split that all records are in.
    """

    model_config = ConfigDict(extra="forbid")

    path: Path | None = None
    language: str = UNDETERMINED
    paths: dict[str, Path] | None = None
    languages: Words | None = None
    split: str | None = None
    skip_bad: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> Options:
        if (self.path is None) == (not self.paths):
            raise ValueError("give either path, or paths: {language: file}")
        for code in [self.language, *(self.paths or {})]:
            if language(code) != code:
                raise ValueError(f"{code!r} is not a language code such as en or zh-Hant")
        return self


class TextSource:
    """Sentences by line: ``columns[language][i]``; ``numbers[i]`` is the line that entry i was on, from 1."""

    def __init__(self, name: str, columns: dict[str, list[str]], numbers: list[int], split: str | None) -> None:
        self.name = name
        self.languages = tuple(columns)
        self._columns = columns
        self._numbers = numbers
        self._split = split

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int, /) -> Record:
        where = f"{self.name}:{self._numbers[index]}"
        captions = {code: (lines[index],) for code, lines in self._columns.items()}
        return Record(id=where, captions=captions, split=self._split, origin=where)


def open_source(options: Options, *, report: BadRecords | None = None) -> TextSource:
    """Read text files. Lines that are blank in every language are left out.

    Raises:
        DataError: a file is missing, not UTF-8, empty or of another length, or a line is blank in one language only.
    """
    report = report or BadRecords(skip=options.skip_bad)
    paths = options.paths or {options.language: options.path or Path()}
    if options.languages is not None:
        missing = [code for code in options.languages if code not in paths]
        if missing:
            raise DataError(f"no file is in language {missing[0]!r}", hint=f"languages: {', '.join(paths)}")
        paths = {code: paths[code] for code in options.languages}
    read = {code: _lines(path) for code, path in paths.items()}
    longest = max(read, key=lambda code: len(read[code]))
    for code, lines in read.items():
        if len(lines) != len(read[longest]):
            raise DataError(
                f"{len(lines)} lines where {paths[longest]} has {len(read[longest])}",
                where=str(paths[code]),
                hint="parallel files need the same number of lines",
            )
    numbers = []
    for row, sentences in enumerate(zip(*read.values(), strict=True)):
        if all(sentences):
            numbers.append(row + 1)
        elif any(sentences):
            code = next(code for code, sentence in zip(read, sentences, strict=True) if not sentence)
            where = f"{paths[code]}:{row + 1}"
            report.add(DataError("the line is blank, but not in the other languages", where=where))
    name = str(next(iter(paths.values())))
    if not numbers:
        raise DataError("no records: the file holds no text", where=name)
    return TextSource(
        name, {code: [lines[n - 1] for n in numbers] for code, lines in read.items()}, numbers, options.split
    )


def _lines(path: Path) -> list[str]:
    """Lines of a file without the blanks around them; only line feeds end a line."""
    try:
        raw = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint="check the path") from error
    if raw and not raw[-1]:
        raw.pop()
    lines = []
    for number, line in enumerate(raw, 1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            where = f"{path}:{number}"
            raise DataError("not UTF-8", where=where, hint="save the file as UTF-8") from error
    return lines
