"""Answering questions about images: questions, images and a model with a vocabulary of answers in, answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmbert.api.front_door import MMBert
from mmbert.api.inputs import image_reference
from mmbert.api.processing import MMBertProcessor, no_vision_encoder
from mmbert.data.answers import normalise_answer
from mmbert.data.images import AnyImage, BoxedImage, PixelInput, identity
from mmbert.data.official import box_within
from mmbert.data.packing import Example, collate
from mmbert.errors import UsageError
from mmbert.model.heads import is_exclusive
from mmbert.model.task_models import read_head
from mmbert.vision.images import load_image
from mmbert.vision.regions import GivenBoxes

HEAD = "answer"
IMAGES_AT_ONCE = 16
"""Images whose regions are made in one pass: a network that looks into boxes of large images needs much memory."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: as the vocabulary has it.
        probability: that people would give it; those of all answers add up to 1 only where the head is ``exclusive``.
    """

    text: str
    probability: float


class Answerer:
    """A model that answers questions.

    Args:
        bert: the model.

    Raises:
        UsageError: it has not learned that, or does not say what the outputs of its head mean.
    """

    def __init__(self, bert: MMBert) -> None:
        reason = cannot_answer(bert)
        if reason is not None:
            learned = HEAD in (bert.config.heads or {})
            hint = "name them when it is converted: mmbert convert --labels FILE" if learned else None
            raise UsageError(reason, hint=hint or "train one: mmbert train question-answering")
        self.bert = bert
        self.labels: list[str] = list((bert.config.heads or {})[HEAD]["labels"])

    def with_boxes(self, image: Any, boxes: Any = None, *, number: int = 0) -> AnyImage:
        """An image as questions are asked about it.

        Args:
            image: anything ``load_image`` takes.
            boxes: [n, 4] x1, y1, x2, y2 in pixels, for models that look into given boxes; None: none are given.
            number: tells images apart that have no name.

        Raises:
            UsageError: the model makes its own regions. DataError: these are no boxes, or not within the image.
            ImageError: the image is missing or damaged.
        """
        ref = image_reference(image, number)
        if boxes is None:
            return ref
        images = self.bert.processor.images
        if not isinstance(images, PixelInput) or not images.encoder.takes_boxes:
            raise UsageError("this model makes its own regions and cannot look into given boxes", hint="leave them out")
        given = GivenBoxes(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)).boxes
        size = load_image(image).size
        within = [
            box_within((x1, y1, x2, y2), size, f"boxes[{i}]") for i, (x1, y1, x2, y2) in enumerate(given.tolist())
        ]
        return BoxedImage(ref, GivenBoxes(np.array(within, dtype=np.float32).reshape(-1, 4)))

    def answer(
        self,
        asked: Sequence[tuple[AnyImage | None, str]],
        *,
        top: int = 1,
        batch_tokens: int = 8192,
        progress: bool = False,
    ) -> list[list[Answer]]:
        """The best answers to each question; questions about one image that follow one another share the work on it.

        Args:
            asked: images (None for a question alone) and questions.
            top: so many answers each, best first.
            batch_tokens: positions per pass.
            progress: show a bar on stderr.

        Raises:
            UsageError: a question is empty, or ``top`` is less than 1.
            ImageError: an image is missing or damaged.
        """
        if top < 1:
            raise UsageError(f"cannot give {top} answers", hint="at least 1")
        if not all(question.strip() for _, question in asked):
            raise UsageError("a question is empty")
        processor = self.bert.processor
        if processor.images is None and any(image is not None for image, _ in asked):
            raise no_vision_encoder()
        examples = [question_example(processor, question, image) for image, question in asked]
        found: list[list[Answer]] = []
        with tqdm(total=len(asked), desc="questions", disable=not progress, unit="question") as bar:
            for part in in_runs(processor, examples, batch_tokens):
                found += self._answer(part, min(top, len(self.labels)))
                bar.update(len(part))
        return found

    @torch.inference_mode()
    def _answer(self, examples: list[Example], top: int) -> list[list[Answer]]:
        batch = collate(examples, self.bert.processor.images).to(self.bert.device)
        places = batch.starts + torch.tensor([answer_place(e) for e in examples], device=batch.device)
        found = read_head(self.bert.model, HEAD, batch, places).logits
        assert found is not None
        logits = found.float()
        likely = logits.softmax(1) if is_exclusive(self.bert.config, HEAD) else logits.sigmoid()
        best = likely.cpu().topk(top)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            [Answer(self.labels[number], round(p, 6)) for p, number in zip(probabilities, numbers, strict=True)]
            for probabilities, numbers in pairs
        ]


def outputs_of_answers(labels: Sequence[str]) -> dict[str, int]:
    """Which output stands for an answer in normal form, as people's answers are compared.

    Labels may be written otherwise (*T-Shirt*); of those with one normal form that written so counts, else the first.
    """
    outputs: dict[str, int] = {}
    for number, label in enumerate(labels):
        outputs.setdefault(normalise_answer(label), number)
    return outputs | {label: number for number, label in enumerate(labels)}


def cannot_answer(bert: Any) -> str | None:
    """Why a model cannot answer questions; None where it can."""
    config = getattr(bert, "config", None)
    head = (getattr(config, "heads", None) or {}).get(HEAD)
    if head is None:
        return "this model does not answer questions"
    return None if head.get("labels") else "this model does not say which answers the outputs of its head are"


def answer(bert: MMBert, image: Any, question: str, boxes: Any = None, top: int = 5) -> list[Answer]:
    """The best answers to one question; see :meth:`MMBert.answer`."""
    answerer = Answerer(bert)
    seen = None if image is None else answerer.with_boxes(image, boxes)
    (found,) = answerer.answer([(seen, question)], top=top)
    return found


def question_example(processor: MMBertProcessor, question: str, image: AnyImage | None) -> Example:
    """``[CLS] question [SEP] [MASK] [SEP]`` (segment 1 from ``[MASK]`` on) and the image's regions.

    A question that is too long loses its last pieces.
    """
    ids, room = processor.ids(question), processor.max_text_tokens - 2
    if len(ids) > room:
        ids = np.concatenate([ids[: room - 1], ids[-1:]])
    ends = [processor.tokenizer.mask_token_id, processor.tokenizer.sep_token_id]
    segments = np.zeros(len(ids) + 2, dtype=np.int64)
    segments[-2:] = 1
    return Example(np.concatenate([ids, np.array(ends, dtype=np.int64)]), segments, image)


def answer_place(example: Example) -> int:
    """Where the ``[MASK]`` stands whose state is classified."""
    return len(example.token_ids) - 2


def in_runs(processor: MMBertProcessor, examples: Sequence[Example], budget: int) -> Iterator[list[Example]]:
    """Neighbours with at most ``budget`` positions and ``IMAGES_AT_ONCE`` images to be looked into."""
    run: list[Example] = []
    seen: set[str] = set()
    total = 0
    for example in examples:
        length = len(example.token_ids) + processor.region_count(example.image) + 1
        key = None if example.image is None else identity(example.image)
        crowded = key is not None and key not in seen and len(seen) == IMAGES_AT_ONCE
        if run and (total + length > budget or crowded):
            yield run
            run, seen, total = [], set(), 0
        run.append(example)
        total += length
        if key is not None and isinstance(processor.images, PixelInput):
            seen.add(key)
    if run:
        yield run
