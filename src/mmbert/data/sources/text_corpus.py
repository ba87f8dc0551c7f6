"""Running text for pre-training: ``.doc`` files with one sentence a line and a blank line between documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbert.data.corpus import CorpusCard, MissingFiles
from mmbert.data.lines import Lines
from mmbert.data.metadata import language
from mmbert.data.records import BadRecords, Record
from mmbert.errors import CheckpointError, DataError

SPLITS = ()
CARD = CorpusCard(
    title="Text corpora of BERT's and VL-BERT's pre-training (Wikipedia, BooksCorpus), or any text in this format",
    where="https://dumps.wikimedia.org (extracted and cut into sentences); BooksCorpus is no longer given away",
    licence="Wikipedia: CC BY-SA 4.0; of other texts, their own",
    size="as large as the files: they are mapped, not read",
    files=("*.doc or *.doc.gz: one sentence a line, a blank line between documents",),
)
_BATCH = 10_000  # sentences whose pieces are counted at a time


class Options(BaseModel):
    """Options of running text.

    ``root``: a folder with ``.doc`` files, or one file. ``language``: of all of it. ``split``: that all records are in.
    ``pack``: join sentences of one document until a record has at least so many units (0: one sentence a record), and
    at most ``most``, unless a single sentence is longer. ``tokenizer``: a folder or hub id, then units are its pieces;
    else words.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str | None = None
    language: str = "en"
    pack: int = Field(default=0, ge=0)
    most: int | None = Field(default=None, ge=1)
    tokenizer: str | None = None
    skip_bad: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> Options:
        if language(self.language) != self.language:
            raise ValueError(f"{self.language!r} is not a language code such as en or zh-Hant")
        if self.most is not None and self.most < self.pack:
            raise ValueError("most is below pack")
        return self


class TextCorpusSource:
    """Runs of sentences.

    Args:
        options: as opened.
        files: the files.
        runs: [records, 3] int64: number of the file, first line and the line after the last.
    """

    def __init__(self, options: Options, files: Sequence[Lines], runs: np.ndarray, documents: int) -> None:
        self.name = str(options.root)
        self.languages = (options.language,)
        self.counts = {"documents": documents}
        self._options, self._files, self._runs = options, files, runs

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int, /) -> Record:
        file, first, end = self._runs[index].tolist()
        lines = self._files[file]
        text = " ".join(lines[number] for number in range(first, end))
        where = f"{lines.path.name}:{first + 1}"
        captions = {self._options.language: (text,)}
        return Record(id=where, captions=captions, split=self._options.split, origin=lines.where(first))


def open_source(options: Options, *, report: BadRecords | None = None) -> TextCorpusSource:
    """Find the documents and cut them into records; every line is read once.

    Raises:
        MissingFiles: no ``.doc`` file is there.
        DataError: a line is not UTF-8 and not skipped (a skipped one ends its run), or there is no text.
    """
    report = report or BadRecords(skip=options.skip_bad)
    root = options.root.expanduser()
    paths = [root] if root.is_file() else sorted([*root.glob("*.doc"), *root.glob("*.doc.gz")])
    if not paths:
        raise MissingFiles(["*.doc"], root, CARD)
    files = [Lines(path) for path in paths]
    measure = _measure(options.tokenizer)
    runs: list[np.ndarray] = []
    documents = 0
    for number, lines in enumerate(files):
        for first, lengths in _stretches(lines, measure if options.pack else None, report):
            cuts = cut_runs(lengths, options.pack, options.most)
            runs.append(np.array([(number, first + a, first + b) for a, b in cuts], dtype=np.int64))
            documents += 1
    if not runs:
        raise DataError("no records: the files hold no text", where=str(root))
    return TextCorpusSource(options, files, np.concatenate(runs), documents)


def cut_runs(lengths: Sequence[int], pack: int, most: int | None) -> list[tuple[int, int]]:
    """Cut a document into runs of whole sentences.

    Args:
        lengths: units of each sentence.
        pack: a run ends once it has so many; 0 ends it after each sentence.
        most: a sentence that would take a run beyond this begins the next one.

    Returns:
        First sentence and the one after the last of each run; every sentence is in one run.
    """
    runs, start, total = [], 0, 0
    for number, length in enumerate(lengths):
        if number > start and most is not None and total + length > most:
            runs.append((start, number))
            start, total = number, 0
        total += length
        if total >= pack:
            runs.append((start, number + 1))
            start, total = number + 1, 0
    if start < len(lengths):
        runs.append((start, len(lengths)))
    return runs


Measure = Callable[[list[str]], list[int]]


def _measure(tokenizer: str | None) -> Measure:
    if tokenizer is None:
        return lambda sentences: [len(sentence.split()) for sentence in sentences]
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library raises many kinds
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"no usable tokenizer: {message[:300]}", where=tokenizer) from error
    return lambda sentences: [len(ids) for ids in found(sentences, add_special_tokens=False)["input_ids"]]


def _stretches(lines: Lines, measure: Measure | None, report: BadRecords) -> Iterator[tuple[int, list[int]]]:
    """First line and sentence lengths of each document (of its parts, around a line that cannot be read)."""
    sentences: list[str] = []
    lengths: list[int] = []
    first = 0

    def settle() -> None:
        lengths.extend(measure(sentences) if measure is not None else [0] * len(sentences))
        sentences.clear()

    for number in range(len(lines) + 1):
        text = ""
        try:
            text = lines[number] if number < len(lines) else ""
        except DataError as error:
            report.add(error)
        if text:
            sentences.append(text)
            if len(sentences) == _BATCH:
                settle()
            continue
        if sentences or lengths:
            settle()
            yield first, lengths
            lengths = []
        first = number + 1
