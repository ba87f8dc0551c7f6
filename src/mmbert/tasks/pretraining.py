"""Pre-training: text in one or two languages, with or without its image, with words and regions hidden.

One record gives one sequence: ``[CLS] caption [SEP] (caption in another language [SEP]) regions [END]``.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import AnyImage
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record
from mmbert.tasks.base import Task, choose, choose_languages, longest_text, shorten
from mmbert.text.masking import mask_whole_words

OBJECTIVES = ("mlm", "mvrc", "mvfr")
REGION_MASK_SHARE = 0.9


class Options(BaseModel):
    """How a record is read.

    Attributes:
        languages: only these; None takes all.
        languages_per_example: 1, or 2 for ``[CLS] a [SEP] b [SEP]`` (as many as the record has).
        second_segment: segment id of the second text (0 in MM-BERT).
        word_rate: chance that a word is hidden.
        region_rate: chance that a region is hidden (never region 0, the whole image).
        keywords: also read the record's further texts, as a list behind the caption.
        max_positions: tokens and regions of a sequence together, at most (64 in the originals): one is dropped from
            the longer of the two in turn, the last regions and the tokens before the last one.
    """

    model_config = ConfigDict(extra="forbid")
    languages: list[str] | None = None
    languages_per_example: int = Field(default=1, ge=1, le=2)
    second_segment: int = Field(default=0, ge=0, le=1)
    word_rate: float = Field(default=0.15, gt=0, lt=1)
    region_rate: float = Field(default=0.15, ge=0, lt=1)
    keywords: bool = False
    max_positions: int | None = Field(default=None, ge=3)


class PreTrainingTask(Task):
    """See the module."""

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        self.objectives = set(objectives)
        self.region_objective = next((n for n in ("mvrc", "mvfr") if n in self.objectives), None)
        self.vocabulary = np.setdiff1d(np.arange(len(processor.tokenizer)), processor.tokenizer.all_special_ids)

    def cost(self, record: Record) -> int:
        languages = choose_languages(record, self.options.languages)
        if not languages:
            return 0
        lengths = sorted(self._longest(record, language) for language in languages)
        text = self.processor.sequence_length(*lengths[-self.options.languages_per_example :])
        regions = self.processor.region_count(self.processor.image_of(record))
        return sum(shorten(text, regions, self.options.max_positions)) + 1

    def _longest(self, record: Record, language: str) -> int:
        further = record.texts.get(language, ()) if self.options.keywords else ()
        return longest_text(self.processor, record.captions[language], further, listed=len(further), behind=True)

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        encoded = self.processor.encode(*self._texts(record, rng))
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        words = _distinct_words(encoded.word_ids(), encoded.sequence_ids())
        labels: dict[str, Label] = {}
        segments: np.ndarray | int = 0
        if self.options.second_segment:
            second = [int(s == 1) for s in encoded.sequence_ids()]
            segments = np.maximum.accumulate(np.array(second, dtype=np.int64))  # its [SEP] too, as in BERT
        if "mlm" in self.objectives:
            mask_id = int(self.processor.tokenizer.mask_token_id)
            ids, places, values = mask_whole_words(
                ids, words, rate=self.options.word_rate, mask_id=mask_id, vocabulary=self.vocabulary, rng=rng
            )
            if len(places):
                labels["mlm"] = Label("mlm", "token", places, values)
        image = self.processor.image_of(record)
        masked = self._hide_regions(image, rng, labels)
        example = Example(ids, segments, image, masked=masked, labels=labels)
        return [self._within_limit(example)]

    def _within_limit(self, example: Example) -> Example:
        """The example without the tokens and regions (and their labels) beyond ``max_positions``."""
        regions = self.processor.region_count(example.image)
        tokens = len(example.token_ids)
        kept_tokens, kept_regions = shorten(tokens, regions, self.options.max_positions)
        if kept_tokens < tokens:
            kept = np.r_[0 : kept_tokens - 1, tokens - 1]  # the last token is [SEP]
            example.token_ids = example.token_ids[kept]
            if not isinstance(example.segments, int):
                example.segments = example.segments[kept]
            _drop_labels(example, "token", kept_tokens - 1)
        if kept_regions < regions:
            example.region_numbers = np.arange(kept_regions)
            if example.masked is not None:
                example.masked = example.masked[:kept_regions]
            _drop_labels(example, "region", kept_regions)
        return example

    def _texts(self, record: Record, rng: np.random.Generator) -> list[str]:
        languages = choose_languages(record, self.options.languages)
        chosen = rng.permutation(len(languages))[: self.options.languages_per_example]
        texts = []
        for language in (languages[i] for i in chosen):
            text = choose(record.captions[language], rng)
            further = record.texts.get(language, ()) if self.options.keywords else ()
            if further:
                text = ", ".join([text, *(further[i] for i in rng.permutation(len(further)))])
            texts.append(text)
        return texts

    def _hide_regions(
        self, image: AnyImage | None, rng: np.random.Generator, labels: dict[str, Label]
    ) -> np.ndarray | None:
        """Draw hidden regions; the label of each is its own row, whether its feature is removed (90 %) or kept."""
        count = self.processor.region_count(image)
        if self.region_objective is None or count < 2:
            return None
        drawn = rng.random(count) < self.options.region_rate
        drawn[0] = False
        if not drawn.any():
            drawn[int(rng.integers(1, count))] = True
        places = np.flatnonzero(drawn)
        labels[self.region_objective] = Label(self.region_objective, "region", places)
        return drawn & (rng.random(count) < REGION_MASK_SHARE)


def _distinct_words(words: list[int | None], texts: list[int | None]) -> list[int | None]:
    """Word numbers that differ between the first and the second text."""
    return [None if w is None else 2 * w + int(t == 1) for w, t in zip(words, texts, strict=True)]


def _drop_labels(example: Example, scope: str, end: int) -> None:
    """Keep the labels before place ``end``; a label without any place goes."""
    for name, label in list(example.labels.items()):
        if label.scope == scope:
            kept = label.places < end
            label.places = label.places[kept]
            label.values = None if label.values is None else label.values[kept]
            if not kept.any():
                del example.labels[name]


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> PreTrainingTask:
    """Make the task."""
    return PreTrainingTask(options, processor, objectives)
