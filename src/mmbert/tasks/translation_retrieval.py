"""Translation retrieval: a sentence and its translation, each encoded alone and drawn together, or judged as a pair.

A record gives two sentences in two of its languages, the first and the second side. ``ttc`` makes their embeddings
near (a dual encoder: cosine), ``ttm_hard`` reads them together, ``[CLS] first [SEP] second [SEP]``, beside pairs made
wrong (a cross-encoder: match logit). With ``images`` each sentence is read with the record's image, and a pair with
that of its first side, as MM-BERT does.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record
from mmbert.tasks.base import Task, choose, choose_languages, group_number, longest_text

OBJECTIVES = ("ttc", "ttm_hard")
LABELS = ("second",)
KEPT_SENTENCES = 200_000
"""Sentences that are cut into pieces once only: each epoch asks for the same ones again."""


class Options(BaseModel):
    """How a record is read.

    Attributes:
        languages: only these, and the side of a sentence: that of the earlier language is the first. None takes all, in
            the record's order.
        images: read the record's image with each sentence, if it has one.
        drop_words: chance that a word is left out of a sentence (one always stays).
    """

    model_config = ConfigDict(extra="forbid")
    languages: list[str] | None = Field(default=None, min_length=2)
    images: bool = False
    drop_words: float = Field(default=0.0, ge=0, lt=1)


class TranslationRetrievalTask(Task):
    """See the module."""

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        self.objectives = [name for name in OBJECTIVES if name in objectives]
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def cost(self, record: Record) -> int:
        languages = self._languages(record)
        if len(languages) < 2:
            return 0
        lengths = sorted(longest_text(self.processor, record.captions[code]) for code in languages)[-2:]
        image = self.processor.image_of(record) if self.options.images else None
        around = self.processor.region_count(image) + 1
        return sum(self.processor.sequence_length(length) + around for length in lengths)

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        languages = self._languages(record)
        drawn = np.sort(rng.permutation(len(languages))[:2])
        group = group_number(record.group)
        image = self.processor.image_of(record) if self.options.images else None
        return [
            Example(
                self._ids(choose(record.captions[languages[number]], rng), rng),
                image=image,
                labels={name: self._label(name, group, side) for name in self.objectives},
            )
            for side, number in enumerate(drawn.tolist())
        ]

    def _languages(self, record: Record) -> list[str]:
        """Languages of the record in the order of the options."""
        found = choose_languages(record, self.options.languages)
        wanted = self.options.languages
        return found if wanted is None else sorted(found, key=wanted.index)

    def _ids(self, text: str, rng: np.random.Generator) -> np.ndarray:
        ids, words = self._encoded(text)
        if not self.options.drop_words:
            return ids
        dropped = rng.random(words.max(initial=-1) + 1) < self.options.drop_words
        return ids if dropped.all() else ids[(words < 0) | ~dropped[words]]

    def _encoded(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a sentence, and the number of the word that each is of (-1: of none)."""
        found = self._kept.get(text)
        if found is None:
            encoded = self.processor.encode(text)
            words = [-1 if word is None else word for word in encoded.word_ids()]
            found = np.asarray(encoded["input_ids"], dtype=np.int64), np.array(words)
            if len(self._kept) < KEPT_SENTENCES:
                self._kept[text] = found
        return found

    @staticmethod
    def _label(name: str, group: int, side: int) -> Label:
        return Label(
            name, "sequence", np.zeros(1, dtype=np.int64), np.array([group]), {"second": np.array([side == 1])}
        )


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> TranslationRetrievalTask:
    """Make the task."""
    return TranslationRetrievalTask(options, processor, objectives)
