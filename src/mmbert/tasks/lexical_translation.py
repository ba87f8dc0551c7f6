"""Lexical translation: which word of another language does an ambiguous word stand for in its sentence?

One record gives one sequence, ``[CLS] word [SEP] sentence [SEP] regions [END]``; its pooled vector is classified over a
list of target words (Lala and Specia, 2018; MM-BERT).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import AnyImage
from mmbert.data.lexicon import Answers, LexicalItem, Lexicon, lexical_items, read_words
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record, Source
from mmbert.errors import ConfigError, DataError
from mmbert.tasks.base import Task
from mmbert.text.forms import find_form

OBJECTIVES = ("lexical",)
HEAD = "lexical"
MARKED, FIRST_NEIGHBOUR = 1, 3
"""Segments of the word's own pieces in the sentence, and from which on those of the pieces around it have (2 is that of
regions): the nearest before it, the nearest behind it, the next before it and so on."""


KEPT_TEXTS = 200_000
"""Sequences that a task keeps."""


class Options(BaseModel):
    """How a record is read.

    Attributes:
        languages: of the translations; None takes all.
        words: a file with the target words, one a line; None takes all that the training records have. A record none
            of whose translations is in the file is not trained on.
        answers: ``given``: a translation as the record has it; ``occurring``: the form of it that stands in the
            sentence's own translation.
        neighbours: say by segments which word of the sentence is meant, and where so many pieces before and behind it
            stand; None says nothing, as the originals do. It needs 3 + 2 * ``neighbours`` segments.
        prior: how much a translation's count in the training rows says before the network says anything: its logit is
            raised by ``prior`` times log(1 + count), so that at 1 the network learns where the sentence departs from
            what is usual, and answers as counting does where it has learnt nothing. 0, as the originals: nothing.
        images: read the record's image too, if it has one.
    """

    model_config = ConfigDict(extra="forbid")
    languages: list[str] | None = None
    words: Path | None = None
    answers: Answers = "given"
    neighbours: int | None = Field(default=None, ge=0)
    prior: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    images: bool = True


def heads(parts: Sequence[tuple[Options, Source]]) -> dict[str, dict[str, Any]]:
    """The head that classifies, with what its outputs mean and what the training records say of each word.

    Raises:
        ConfigError: two lists of target words, or one that cannot be read.
        DataError: no record is about a word.
    """
    lexicon, lists = Lexicon(), {options.words for options, _ in parts}
    if len(lists) > 1:
        raise ConfigError("components with different lists of target words", hint="one model has one list")
    for options, source in parts:
        for number in range(len(source)):
            for item in _items(source[number], options):
                lexicon.add(item, options.answers)
    (path,) = lists
    words = lexicon.all_translations() if path is None else read_words(path)
    if not lexicon.counts:
        raise DataError("no record gives a word and its translations", where=parts[0][1].name)
    first = parts[0][0]
    read = {"answers": first.answers, "neighbours": first.neighbours, "prior": first.prior}
    return {HEAD: {"kind": "linear", "outputs": len(words), "labels": words, "lexicon": lexicon.counts, **read}}


class TargetWords:
    """What a model's lexical head knows: its list of target words and its lexicon.

    Args:
        head: options of the head, as in ``config.heads``.

    Raises:
        ConfigError: it names no words.
    """

    def __init__(self, head: dict[str, Any]) -> None:
        self.words: list[str] = list(head.get("labels") or ())
        if not self.words:
            raise ConfigError(
                "the model does not say what the outputs of its lexical head mean",
                hint="give the list: mmbert evaluate mlt --words FILE, or mmbert convert --labels FILE",
            )
        self.lexicon = Lexicon(head.get("lexicon"))
        self.answers: Answers = head.get("answers", "given")
        self.neighbours: int | None = head.get("neighbours")
        self.strength = float(head.get("prior", 0.0))
        self.numbers: dict[str, int] = {}
        for number, word in enumerate(self.words):
            self.numbers.setdefault(word.lower(), number)

    def right(self, item: LexicalItem, answers: Answers) -> list[int]:
        """Outputs that are right; none where no translation is in the list."""
        found = (self.numbers.get(text.lower()) for text in item.right(answers))
        return [number for number in dict.fromkeys(found) if number is not None]

    def candidates(self, item: LexicalItem) -> np.ndarray:
        """[outputs] whether each is a translation that the word had in training; all where it had none of them."""
        known = list(self._counts(item))
        among = np.full(len(self.words), not known)
        among[known] = True
        return among

    def prior(self, item: LexicalItem) -> np.ndarray:
        """[outputs] what is added to each logit: see ``Options.prior``; zeros where the word was never seen."""
        counts = self._counts(item)
        prior = np.zeros(len(self.words), dtype=np.float32)
        prior[list(counts)] = self.strength * np.log1p(list(counts.values()))
        return prior

    def _counts(self, item: LexicalItem) -> dict[int, int]:
        """Outputs that are translations of the item's word, and how often it had them in training."""
        found = self.lexicon.translations_of(item).items()
        return {self.numbers[text]: sum(given.values()) for text, given in found if text in self.numbers}


def sequence(
    processor: MMBertProcessor, item: LexicalItem, *, neighbours: int | None = None, image: AnyImage | None = None
) -> Example:
    """``[CLS] word [SEP] sentence [SEP]`` and the image's regions, with segments as ``Options.neighbours`` says."""
    return Example(*_text(processor, item.word, item.sentence, neighbours), image)


def _text(
    processor: MMBertProcessor, word: str, sentence: str, neighbours: int | None
) -> tuple[np.ndarray, np.ndarray | int]:
    """[n] ids and segments."""
    encoded = processor.encode(word, sentence)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    span = find_form(word, sentence, compounds=True) if neighbours is not None else None
    if span is None or neighbours is None:
        return ids, 0
    pieces = {encoded.char_to_token(place, sequence_index=1) for place in range(*span)} - {None}
    return ids, _segments(encoded.sequence_ids(), sorted(pieces), neighbours)


def _segments(parts: Sequence[int | None], marked: Sequence[int], neighbours: int) -> np.ndarray:
    """[n] segments of a pair of texts; ``marked`` are pieces of the second (none where it was cut before them)."""
    segments = np.zeros(len(parts), dtype=np.int64)
    if not marked:
        return segments
    segments[list(marked)] = MARKED
    for distance in range(neighbours):
        for side, place in enumerate((marked[0] - 1 - distance, marked[-1] + 1 + distance)):
            if 0 <= place < len(parts) and parts[place] == 1:
                segments[place] = FIRST_NEIGHBOUR + 2 * distance + side
    return segments


class LexicalTranslationTask(Task):
    """See the module.

    Raises:
        ConfigError: the model has no pooled vector, or does not say what the outputs of its head mean.
    """

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        self.target = TargetWords(processor.heads.get(HEAD) or {})
        # Planning batches asks for a sequence's length, so that each is made then, and kept for all epochs.
        self._text = lru_cache(KEPT_TEXTS)(lambda word, sentence: _text(processor, word, sentence, options.neighbours))
        needed = 0 if options.neighbours is None else FIRST_NEIGHBOUR + 2 * options.neighbours
        if needed > processor.segments:
            raise ConfigError(
                f"neighbours {options.neighbours} need {needed} segments, the model has {processor.segments}",
                hint=f"model.config.type_vocab_size={needed}, in a model that is trained from scratch",
            )

    def cost(self, record: Record) -> int:
        items = [item for item in _items(record, self.options) if self.target.right(item, self.options.answers)]
        if not items:
            return 0
        longest = max(len(self._text(item.word, item.sentence)[0]) for item in items)
        return longest + self.processor.region_count(self._image(record)) + 1

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        answers = self.options.answers
        items = [item for item in _items(record, self.options) if self.target.right(item, answers)]
        item = items[int(rng.integers(len(items)))]
        example = Example(*self._text(item.word, item.sentence), self._image(record))
        right = self.target.right(item, answers)
        value = np.array([right[int(rng.integers(len(right)))]])
        known = {"among": self.target.candidates(item)[None]}
        if self.target.strength:
            known["prior"] = self.target.prior(item)[None]
        example.labels[HEAD] = Label(HEAD, "sequence", np.zeros(1, dtype=np.int64), value, known)
        return [example]

    def _image(self, record: Record) -> AnyImage | None:
        return self.processor.image_of(record) if self.options.images else None


def _items(record: Record, options: Options) -> list[LexicalItem]:
    return [i for i in lexical_items(record) if options.languages is None or i.language in options.languages]


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> LexicalTranslationTask:
    """Make the task."""
    return LexicalTranslationTask(options, processor, objectives)
