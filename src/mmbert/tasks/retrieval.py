"""Retrieval: texts and images encoded alone and drawn together, and pairs of them judged together.

A record gives one image sequence and a few of its captions in random languages (or, without an image, captions
alone). Their group says which belong together.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import AnyImage
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record
from mmbert.tasks.base import Task, choose, choose_languages, group_number, longest_text

OBJECTIVES = ("class_names", "itc", "itm_hard", "proxy", "ttc")
LONGEST_LIST = 4
"""Further texts in a list of them, at most."""


class Options(BaseModel):
    """How a record is read.

    Attributes:
        languages: only these; None takes all.
        images: read images too; without, a record's captions stand alone.
        texts_per_record: captions drawn per record, in different languages as far as there are enough.
        keyword_rate: chance that a drawn text is one of the record's further texts instead of a caption.
        keyword_list_rate: chance that a further text is a list of several of them.
    """

    model_config = ConfigDict(extra="forbid")
    languages: list[str] | None = None
    images: bool = True
    texts_per_record: int = Field(default=1, ge=1)
    keyword_rate: float = Field(default=0.0, ge=0, le=1)
    keyword_list_rate: float = Field(default=0.0, ge=0, le=1)


class RetrievalTask(Task):
    """See the module."""

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        self.labelled = [name for name in OBJECTIVES if name in objectives and name != "itm_hard"]
        self.hard = "itm_hard" in objectives

    def cost(self, record: Record) -> int:
        languages = choose_languages(record, self.options.languages)
        if not languages:
            return 0
        text = self.processor.sequence_length(max(self._longest(record, language) for language in languages)) + 1
        texts, image = self.options.texts_per_record * text, self._image(record)
        if image is None:
            return texts
        return texts + len(self.processor.image_ids()) + self.processor.region_count(image) + 1

    def _longest(self, record: Record, language: str) -> int:
        further = record.texts.get(language, ()) if self.options.keyword_rate else ()
        listed = LONGEST_LIST if self.options.keyword_list_rate else 0
        return longest_text(self.processor, record.captions[language], further, listed=listed)

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        group = group_number(record.group)
        examples = [
            Example(self.processor.ids(text), labels=self._labels(group, is_image=False))
            for text in self._draw(record, rng)
        ]
        image = self._image(record)
        if image is not None:
            labels = self._labels(group, is_image=True)
            examples.append(Example(self.processor.image_ids(), image=image, labels=labels))
        return examples

    def _image(self, record: Record) -> AnyImage | None:
        return self.processor.image_of(record) if self.options.images else None

    def _draw(self, record: Record, rng: np.random.Generator) -> list[str]:
        """``texts_per_record`` texts; languages are used up before one comes again."""
        languages = choose_languages(record, self.options.languages)
        order: list[str] = []
        while len(order) < self.options.texts_per_record:
            order.extend(languages[i] for i in rng.permutation(len(languages)))
        return [self._text(record, language, rng) for language in order[: self.options.texts_per_record]]

    def _text(self, record: Record, language: str, rng: np.random.Generator) -> str:
        further = record.texts.get(language, ())
        if not further or rng.random() >= self.options.keyword_rate:
            return choose(record.captions[language], rng)
        if rng.random() >= self.options.keyword_list_rate:
            return choose(further, rng)
        count = int(rng.integers(2, LONGEST_LIST + 1))
        return ", ".join(further[i] for i in rng.permutation(len(further))[:count])

    def _labels(self, group: int, *, is_image: bool) -> dict[str, Label]:
        names = [n for n in self.labelled if not (is_image and n == "ttc")]
        place = np.zeros(1, dtype=np.int64)
        labels = {
            name: Label(name, "sequence", place, np.array([group]), {"is_image": np.array([is_image])})
            for name in names
        }
        if self.hard:
            labels["itm_hard"] = Label("itm_hard", "sequence", place, np.array([group]))
        return labels


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> RetrievalTask:
    """Make the task."""
    return RetrievalTask(options, processor, objectives)
