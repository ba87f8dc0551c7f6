"""Question answering: a question about an image; which of the answers that people often give is right?

One record gives one sequence, ``[CLS] question [SEP] [MASK] [SEP] regions [END]``; the state of the ``[MASK]`` is
classified over a vocabulary of answers, each right to the degree that people gave it (VL-BERT on VQA v2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.answering import HEAD, answer_place, outputs_of_answers, question_example
from mmbert.api.processing import MMBertProcessor
from mmbert.data.answers import MIN_OCCURRENCES, answer_vocabulary, read_answers, soft_scores
from mmbert.data.images import AnyImage, BoxedImage
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record, Source
from mmbert.errors import ConfigError, DataError
from mmbert.tasks.base import Task
from mmbert.text.sides import swap_sides

OBJECTIVES = ("answer",)


class Options(BaseModel):
    """How a record is read.

    Attributes:
        answers: a file with the vocabulary, one answer a line; None builds it from the training records.
        min_occurrences: an answer of so many questions enters a vocabulary that is built.
        images: read the image, too; without, a model learns what can be guessed from questions alone.
        flip: chance that the image is seen mirrored, with left and right swapped in question and answers. Of stored
            regions the boxes are mirrored.
    """

    model_config = ConfigDict(extra="forbid")
    answers: Path | None = None
    min_occurrences: int = Field(default=MIN_OCCURRENCES, ge=1)
    images: bool = True
    flip: float = Field(default=0.0, ge=0, le=1)


def heads(parts: Sequence[tuple[Options, Source]]) -> dict[str, dict[str, Any]]:
    """The head that classifies, with the answers that its outputs are; the recipe may say more of it.

    Raises:
        ConfigError: components with different vocabularies, or one that cannot be read.
        DataError: no answer occurs often enough.
    """
    settings = {(options.answers, options.min_occurrences) for options, _ in parts}
    if len(settings) > 1:
        raise ConfigError("components with different vocabularies of answers", hint="one model has one")
    ((path, minimum),) = settings
    labels = read_answers(path) if path is not None else answer_vocabulary(_usual(parts), minimum)
    return {HEAD: {"kind": "linear", "outputs": len(labels), "labels": labels}}


def _usual(parts: Sequence[tuple[Options, Source]]) -> list[str]:
    """The most frequent answer to each question; those of Visual Genome, which nobody confirmed, do not count."""
    sources = {id(source): source for _, source in parts}.values()
    records = (source[number] for source in sources for number in range(len(source)))
    known = (record.annotation for record in records if "answer" in record.annotation)
    return [str(annotation["answer"]) for annotation in known if not annotation.get("corpus")]


class QuestionAnsweringTask(Task):
    """See the module.

    Raises:
        ConfigError: the model does not say which answers the outputs of its head are, or has another number of them.
    """

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        head = processor.heads.get(HEAD) or {}
        labels = list(head.get("labels") or ())
        if not labels:
            raise ConfigError(
                "the model does not say which answers the outputs of its head are", hint="options.answers"
            )
        if len(labels) != head.get("outputs"):
            raise ConfigError(
                f"{len(labels)} answers, but the head has {head.get('outputs')} outputs",
                hint=f"model.config.heads.{HEAD}.outputs={len(labels)}",
            )
        self.outputs = len(labels)
        self.numbers = outputs_of_answers(labels)

    def cost(self, record: Record) -> int:
        if not record.annotation.get("question") or not record.annotation.get("answers"):
            return 0
        question = str(record.annotation["question"])
        asked = [question, swap_sides(question)] if self.options.flip else [question]
        longest = max(self.processor.lengths(asked))
        text = min(self.processor.max_text_tokens, self.processor.sequence_length(longest) + 2)
        return text + self.processor.region_count(self._image(record)) + 1

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        question, answers = str(record.annotation["question"]), list(record.annotation["answers"])
        image = self._image(record)
        if self.options.flip and image is not None and rng.random() < self.options.flip:
            image, question = BoxedImage.mirrored(image), swap_sides(question)
            answers = [swap_sides(answer) for answer in answers]
        example = question_example(self.processor, question, image)
        place = np.array([answer_place(example)])
        example.labels[HEAD] = Label(HEAD, "token", place, self.scores(answers, record)[None])
        return [example]

    def scores(self, answers: Sequence[str], record: Record) -> np.ndarray:
        """[outputs] float32: to what degree each answer is right; answers outside of the vocabulary are left out.

        Raises:
            DataError: there is no answer.
        """
        found = np.zeros(self.outputs, dtype=np.float32)
        try:
            for answer, score in soft_scores(answers).items():
                if answer in self.numbers:
                    found[self.numbers[answer]] = score
        except DataError as error:
            raise DataError(error.message, where=record.origin or record.id) from error
        return found

    def _image(self, record: Record) -> AnyImage | None:
        return self.processor.image_of(record) if self.options.images else None


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> QuestionAnsweringTask:
    """Make the task."""
    return QuestionAnsweringTask(options, processor, objectives)
