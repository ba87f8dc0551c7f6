"""VCR: which of four answers is right about an image, and which of four reasons for the right answer?

One record gives four sequences over the same regions, ``[CLS] question [SEP] choice [SEP] regions [END]``; a word that
stands for an object is tied to the object's region. The image is worked on once for all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import AnyImage, BoxedImage, PixelInput
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record
from mmbert.data.sources.vcr import CHOICES, object_class
from mmbert.errors import ConfigError, DataError
from mmbert.tasks.base import Task, group_number

OBJECTIVES = ("choice", "region_class", "feature_class")
NAMES = (
    "Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall", "Frankie", "Pat",
    "Quinn",
)  # fmt: skip
"""Names that tell nothing about who bears them (Zellers et al., 2019); people are called so one after the other."""
PERSON = "person"
HERE = np.zeros(1, dtype=np.int64)

Piece = tuple[int, int]
"""A word piece: its id, and the number of the region that it is tied to (0: the whole image)."""


class Options(BaseModel):
    """How a question becomes sequences; the last five are VL-BERT's ablations and limits.

    Attributes:
        step: ``answer``: question to answer; ``rationale``: question and right answer to rationale.
        objects: ``all`` of the image, in the corpus's order, or only those ``mentioned``, in the order in which the
            question, the answers and (in the second step) the rationales name them first.
        masks: objects count within their outlines only, where the vision encoder looks into boxes.
        flip: chance that a training image is mirrored (texts stay as they are, as in VL-BERT).
        max_text: word pieces of question and choice together, at most: the longer of the two loses its end.
        image: off: blind, the text alone.
        grounding: off: words are tied to the whole image, whatever they stand for.
        choice_first: the choice stands before the question.
        question: off: a rationale is chosen by the answer alone.
    """

    model_config = ConfigDict(extra="forbid")
    step: Literal["answer", "rationale"] = "answer"
    objects: Literal["all", "mentioned"] = "all"
    masks: bool = True
    flip: float = Field(default=0.0, ge=0, le=1)
    max_text: int = Field(default=64, ge=3)
    image: bool = True
    grounding: bool = True
    choice_first: bool = False
    question: bool = True


@dataclass(frozen=True)
class _Seen:
    """What the four sequences of a question have in common.

    Attributes:
        image: as the vision encoder or the store gets it; None where the model is blind.
        used: numbers of the record's objects that are regions, in order.
        regions: numbers of the image's regions that are read; None for all.
        places: object number to the number of its region.
        names: what each object of the record is called.
    """

    image: AnyImage | None
    used: list[int]
    regions: np.ndarray | None
    places: dict[int, int]
    names: list[str]


class VcrTask(Task):
    """See the module."""

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        self.objectives = set(objectives)

    def cost(self, record: Record) -> int:
        label = f"{self.options.step}_label"
        if label not in record.annotation:
            return 0
        return CHOICES * self.longest(record)

    def longest(self, record: Record) -> int:
        """Positions of the longest sequence, at most."""
        note = record.annotation
        called = max(self.processor.lengths([*NAMES, "and", *{box.name for box in record.boxes}]))
        parts = [note[f"{self.options.step}_choices"], [note["question"]]]
        parts += [note["answer_choices"]] if self.options.step == "rationale" else []
        text = sum(max(self._pieces_of(tokens, called) for tokens in part) for part in parts)
        regions = 0 if not self.options.image or record.image is None else 1 + len(self._used(record))
        return min(text, self.options.max_text) + 3 + regions + 1

    def _pieces_of(self, tokens: Sequence[Any], called: int) -> int:
        """Word pieces of a text, at most, where what an object is called has at most ``called``."""
        words = [word for word in tokens if isinstance(word, str)]
        tags = sum(2 * len(tag) - 1 for tag in tokens if not isinstance(tag, str))  # with "and" between them
        return sum(self.processor.lengths(words)) + tags * called

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        right = record.annotation[f"{self.options.step}_label"]
        seen = self._seen(record, int(rng.integers(len(NAMES))))
        if self.options.flip and rng.random() < self.options.flip:
            seen = replace(seen, image=None if seen.image is None else BoxedImage.mirrored(seen.image))
        given = record.annotation["answer_label"] if self.options.step == "rationale" else None
        examples = self._sequences(record, seen, given)
        question = np.array([group_number(f"{record.id}|{self.options.step}")])
        for number, example in enumerate(examples):
            chosen = np.array([int(number == right)])
            example.labels["choice"] = Label("choice", "sequence", HERE, chosen, {"question": question})
            if seen.image is not None:
                self._label_regions(example, record, seen, first=number == 0)
        return examples

    def _label_regions(self, example: Example, record: Record, seen: _Seen, *, first: bool) -> None:
        """Class 0 for the whole image; the regions' own features are labelled once for all choices."""
        wanted = [n for n in ("region_class", "feature_class") if n in self.objectives]
        if not wanted:
            return
        classes = np.array([0, *(object_class(record, number) for number in seen.used)])
        places = np.arange(len(classes))
        for name in wanted:
            if name == "region_class":
                example.labels[name] = Label(name, "region", places, classes)
            elif first:
                example.labels[name] = Label(name, "feature", places, classes)

    def choices(self, record: Record, answer: int | None = None) -> list[Example]:
        """The four sequences of a question without labels, as they are evaluated; people are named from the first name.

        Args:
            record: of VCR.
            answer: the answer for which a rationale is sought (second step).
        """
        return self._sequences(record, self._seen(record, 0), answer)

    def _sequences(self, record: Record, seen: _Seen, answer: int | None) -> list[Example]:
        note = record.annotation
        question = self._pieces(note["question"], seen) if self.options.question or answer is None else []
        given = [] if answer is None else self._pieces(note["answer_choices"][answer], seen)
        choices = [self._pieces(tokens, seen) for tokens in note[f"{self.options.step}_choices"]]
        shorten(question, given, choices, self.options.max_text)
        return [self._sequence([*question, *given], choice, seen) for choice in choices]

    def _sequence(self, question: list[Piece], choice: list[Piece], seen: _Seen) -> Example:
        tokenizer = self.processor.tokenizer
        cls, sep = (int(tokenizer.cls_token_id), 0), (int(tokenizer.sep_token_id), 0)
        first, second = (choice, question) if self.options.choice_first else (question, choice)
        ids, ties = np.array([cls, *first, sep, *second, sep], dtype=np.int64).T
        segments = np.repeat([0, 1], [len(first) + 2, len(second) + 1])
        return Example(ids, segments, seen.image, ties if self.options.grounding else 0, seen.regions)

    def _pieces(self, tokens: Sequence[Any], seen: _Seen) -> list[Piece]:
        """Word pieces of a text; several objects in a row are joined by "and"."""
        words: list[tuple[str, int]] = []
        for token in tokens:
            if isinstance(token, str):
                words.append((token, 0))
                continue
            for number, tag in enumerate(token):
                words += [("and", 0)] if number else []
                words.append((seen.names[tag], seen.places[tag]))
        encoded = self.processor.tokenizer([word for word, _ in words], add_special_tokens=False)["input_ids"]
        return [(int(i), tie) for ids, (_, tie) in zip(encoded, words, strict=True) for i in ids]

    def _seen(self, record: Record, first_name: int) -> _Seen:
        used = self._used(record)
        people = [number for number in used if record.boxes[number].name == PERSON]
        names = [box.name for box in record.boxes]
        for number, person in enumerate(people):
            names[person] = NAMES[(first_name + number) % len(NAMES)]
        if not self.options.image or record.image is None:
            return _Seen(None, used, None, dict.fromkeys(range(len(names)), 0), names)
        image, regions = self._image(record, used)
        numbers = range(1, len(used) + 1) if regions is None else regions[1:].tolist()
        return _Seen(image, used, regions, dict(zip(used, numbers, strict=True)), names)

    def _image(self, record: Record, used: list[int]) -> tuple[AnyImage | None, np.ndarray | None]:
        """The image with the boxes used; where regions are stored, the numbers of those of the boxes used.

        Raises:
            ConfigError: the model's vision encoder does not look into boxes.
            DataError: a store has other regions of the image than its objects.
        """
        images = self.processor.images
        if images is None or isinstance(images, PixelInput):
            if images is not None and not images.encoder.takes_boxes:
                raise ConfigError(
                    f"vision encoder {images.encoder.kind!r} does not look into boxes, which VCR's words are tied to",
                    hint="take kind resnet, or stored regions of the objects (features)",
                )
            boxes = tuple(record.boxes[number] for number in used)
            if not self.options.masks:
                boxes = tuple(replace(box, polygons=()) for box in boxes)
            return self.processor.image_of(replace(record, boxes=boxes)), None
        assert record.image is not None
        count = images.count(record.image)
        if count != 1 + len(record.boxes):
            raise DataError(
                f"{count} stored regions of {record.image.key!r}, which has {len(record.boxes)} objects",
                where=record.origin or record.id,
                hint="the store needs the whole image and each of the objects, in their order",
            )
        return record.image, np.array([0, *(1 + number for number in used)])

    def _used(self, record: Record) -> list[int]:
        """Numbers of the objects that become regions."""
        if self.options.objects == "all":
            return list(range(len(record.boxes)))
        note = record.annotation
        texts = [note["question"], *note["answer_choices"]]
        texts += note["rationale_choices"] if self.options.step == "rationale" else []
        tags = (tag for text in texts for token in text if not isinstance(token, str) for tag in token)
        return list(dict.fromkeys(tags))


def shorten(question: list[Piece], given: list[Piece], choices: Sequence[list[Piece]], limit: int) -> None:
    """Cut ends off, in place, until the question, what is given with it and each choice together are within ``limit``.

    The longer of choice and the rest loses its last piece, the rest where they are equal: of it the question first
    (down to one piece where there is something given). All choices get the same question (VL-BERT's rule).
    """
    for choice in choices:
        while len(question) + len(given) + len(choice) > limit:
            if len(choice) > len(question) + len(given):
                choice.pop()
            elif len(question) > (1 if given else 0):
                question.pop()
            else:
                given.pop()


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> VcrTask:
    """Make the task.

    Raises:
        ConfigError: options that contradict each other.
    """
    if not options.question and options.step == "answer":
        raise ConfigError("an answer cannot be chosen without the question", hint="question: false is for rationales")
    return VcrTask(options, processor, objectives)
