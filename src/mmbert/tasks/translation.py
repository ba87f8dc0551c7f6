"""Translation and captioning: read a text (or nothing) and its image, write a text in another language.

With the objective ``lm`` one record gives one sequence in one of its directions (all of them equally often, unless told
otherwise), ``[CLS] source [SEP] regions [END]``, continued by ``[2de] target``; every next piece is predicted in one
pass. The first token names the language, so one model writes any of them (Johnson et al., 2017). An empty source makes
it a caption.
With the objective ``mlm`` it is MM-BERT's "simple encoder": one sequence per piece,
``[CLS] source [SEP] prefix [MASK] [SEP]``, and ``[STOP]`` behind the last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record
from mmbert.errors import ConfigError
from mmbert.tasks.base import Task, choose, choose_languages, longest_text
from mmbert.text.tokenizer import STOP, language_token, writing_languages

OBJECTIVES = ("lm", "mlm")


class Options(BaseModel):
    """How a record is read.

    Attributes:
        sources: languages that are read; None: all.
        targets: languages that are written; None: all.
        through: one of the two languages of each pair is this; None: any may be read for any.
        weights: by direction, ``en-fr``: how often it is drawn, where the others are drawn once; ``-de``: captions in
            German.
        images: read the record's image too, if it has one.
        prefixes: of ``mlm``: so many prefixes are drawn from each text; None: all of them.
        caption_rate: chance that the text of a record with an image is not read, so that the image is captioned.
    """

    model_config = ConfigDict(extra="forbid")
    sources: list[str] | None = None
    targets: list[str] | None = None
    through: str | None = None
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    images: bool = True
    prefixes: int | None = Field(default=None, ge=1)
    caption_rate: float = Field(default=0.0, ge=0, le=1)


class _WritingTask(Task):
    """Draws what is read and what is written; how that becomes sequences is the objective's."""

    def __init__(self, options: Options, processor: MMBertProcessor) -> None:
        self.options = options
        self.processor = processor
        self.languages = writing_languages(processor.tokenizer)

    def positions(self, read: int, written: int) -> int:
        """Positions of all sequences for ``read`` positions and ``written`` pieces, the end mark counted."""
        raise NotImplementedError

    def sequences(self, read: np.ndarray, pieces: np.ndarray, target: str, rng: np.random.Generator) -> list[Example]:
        """What is learned from ``pieces`` in the language ``target`` behind the ids that are read."""
        raise NotImplementedError

    def can_write(self, language: str) -> bool:
        """Whether texts in this language are learned."""
        raise NotImplementedError

    def cost(self, record: Record) -> int:
        most = 0
        regions = self.processor.region_count(self.processor.image_of(record)) if self._image(record) else 0
        for target, sources in self._directions(record):
            source = max((longest_text(self.processor, record.captions[code]) for code in sources), default=0)
            read = self.processor.sequence_length(source) + regions + 1
            written = min(self.processor.max_text_tokens - 2, longest_text(self.processor, record.captions[target])) + 1
            most = max(most, self.positions(read, written))
        return most

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        pairs: list[tuple[str, str | None]] = []
        for code, sources in self._directions(record):
            pairs += [(code, source) for source in sources] or [(code, None)]
        target, read_from = pairs[self._drawn(pairs, rng)]
        image = self.processor.image_of(record) if self._image(record) else None
        captioned = image is not None and (read_from is None or rng.random() < self.options.caption_rate)
        text = "" if captioned or read_from is None else choose(record.captions[read_from], rng)
        read = self.processor.image_ids() if captioned else self.processor.ids(text)
        pieces = self.processor.written_ids(choose(record.captions[target], rng))
        examples = self.sequences(read, pieces, target, rng)
        for example in examples:
            example.image = image
        return examples

    def _drawn(self, pairs: list[tuple[str, str | None]], rng: np.random.Generator) -> int:
        """Number of one of the (target, source) pairs."""
        if not self.options.weights:
            return int(rng.integers(len(pairs)))
        weights = np.array([self.options.weights.get(f"{source or ''}-{target}", 1.0) for target, source in pairs])
        return int(rng.choice(len(pairs), p=weights / weights.sum()))

    def _image(self, record: Record) -> bool:
        return self.options.images and record.image is not None

    def _directions(self, record: Record) -> Iterator[tuple[str, list[str]]]:
        """Each language that can be written, with those that can be read for it."""
        readable = choose_languages(record, self.options.sources)
        for target in choose_languages(record, self.options.targets):
            if not self.can_write(target):
                continue
            sources = [code for code in readable if code != target and self.options.through in (None, code, target)]
            if sources or self._image(record):
                yield target, sources


class TranslationTask(_WritingTask):
    """With ``lm``: the text continues the sequence, and every next piece is predicted in one pass.

    Raises:
        ConfigError: a target language has no token, or a weight is that of a direction into no language that can be
            written.
    """

    def __init__(self, options: Options, processor: MMBertProcessor) -> None:
        super().__init__(options, processor)
        for direction in options.weights:
            if not any(direction.endswith(f"-{target}") for target in self.languages):
                raise ConfigError(
                    f"weights: {direction!r} ends with no language that can be written",
                    hint=f"SOURCE-TARGET, TARGET one of {', '.join(self.languages) or 'none'}",
                )
        tokens = [language_token(code) for code in options.targets or self.languages or ("de",)]
        _check_tokens(processor, tokens)
        self.end = int(processor.tokenizer.sep_token_id)

    def can_write(self, language: str) -> bool:
        return language in self.languages

    def positions(self, read: int, written: int) -> int:
        return read + written

    def sequences(self, read: np.ndarray, pieces: np.ndarray, target: str, rng: np.random.Generator) -> list[Example]:
        written = np.concatenate([[self.languages[target]], pieces])
        label = Label("lm", "written", np.arange(len(written)), np.concatenate([pieces, [self.end]]))
        return [Example(read, labels={"lm": label}, written=written)]


class MaskedTranslationTask(_WritingTask):
    """With ``mlm``: one sequence for each piece, which is predicted at ``[MASK]``.

    Raises:
        ConfigError: ``[STOP]`` has no token.
    """

    def __init__(self, options: Options, processor: MMBertProcessor) -> None:
        super().__init__(options, processor)
        _check_tokens(processor, [STOP])
        self.end = int(processor.tokenizer.get_vocab()[STOP])

    def can_write(self, language: str) -> bool:
        return True

    def positions(self, read: int, written: int) -> int:
        rows = min(written, self.options.prefixes or written)
        return rows * (read + 1 + written)  # the last prefix is the longest

    def sequences(self, read: np.ndarray, pieces: np.ndarray, target: str, rng: np.random.Generator) -> list[Example]:
        rows = list(self._prefixes(read, pieces))
        if self.options.prefixes is not None:
            rows = [rows[i] for i in rng.permutation(len(rows))[: self.options.prefixes]]
        return [Example(ids, labels={"mlm": label}) for ids, label in rows]

    def _prefixes(self, read: np.ndarray, pieces: np.ndarray) -> Iterator[tuple[np.ndarray, Label]]:
        """Each prefix of the target behind the source, and what comes next."""
        ends = [self.processor.tokenizer.mask_token_id, self.processor.tokenizer.sep_token_id]
        for number, piece in enumerate([*pieces.tolist(), self.end]):
            place = np.array([len(read) + number])
            yield np.concatenate([read, pieces[:number], ends]), Label("mlm", "token", place, np.array([piece]))


def _check_tokens(processor: MMBertProcessor, tokens: Collection[str]) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    missing = next((token for token in tokens if token not in vocabulary), None)
    if missing is not None:
        raise ConfigError(
            f"the vocabulary has no token {missing}", hint=f"model.tokenizer.add_special: ['{missing}'] adds it"
        )


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> Task:
    """Make the task of the objective.

    Raises:
        ConfigError: both objectives are asked for, or the vocabulary lacks a token.
    """
    if set(objectives) == set(OBJECTIVES):
        raise ConfigError("translation learns by lm or by mlm, not by both", hint="make it two components")
    return (MaskedTranslationTask if "mlm" in objectives else TranslationTask)(options, processor)
