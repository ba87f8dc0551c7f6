"""Grounding with a model: expressions and images with candidate boxes go in, a score for each candidate comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmbert.api.answering import in_runs
from mmbert.api.front_door import MMBert
from mmbert.api.inputs import image_reference
from mmbert.api.processing import BLIND, no_vision_encoder
from mmbert.data.images import AnyImage, BoxedImage, OpenedImage, PixelInput
from mmbert.data.packing import Example, collate
from mmbert.errors import UsageError
from mmbert.model.packed import region_places
from mmbert.model.task_models import read_head
from mmbert.vision.boxes import windows
from mmbert.vision.images import load_image
from mmbert.vision.regions import GivenBoxes


@dataclass(frozen=True)
class Grounding:
    """What an expression means in an image.

    Attributes:
        boxes: [n, 4] float32 candidates x1, y1, x2, y2 in pixels.
        scores: [n] float32 probability of each that it is meant; they need not add up to 1.
    """

    boxes: np.ndarray
    scores: np.ndarray

    @property
    def best(self) -> int:
        """Number of the candidate with the highest score."""
        return int(self.scores.argmax())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The best candidate."""
        x1, y1, x2, y2 = self.boxes[self.best].tolist()
        return x1, y1, x2, y2

    def order(self, count: int | None = None) -> list[int]:
        """Numbers of the candidates, best first, at most ``count``."""
        return np.argsort(-self.scores, kind="stable")[:count].tolist()


class Grounder:
    """A model that finds what expressions mean.

    Args:
        bert: the model.

    Raises:
        UsageError: it has not learned that, or reads no images.
    """

    def __init__(self, bert: MMBert) -> None:
        reason = cannot_ground(bert)
        if reason is not None:
            if reason == BLIND:
                raise no_vision_encoder()
            raise UsageError(reason, hint="train one: mmbert train grounding")
        self.bert = bert

    @property
    def takes_boxes(self) -> bool:
        """Whether the model looks into boxes that are given with an image."""
        images = self.bert.processor.images
        return isinstance(images, PixelInput) and images.encoder.takes_boxes

    def candidates(self, image: Any, boxes: Any = None) -> AnyImage:
        """An image with the boxes that are looked into.

        Args:
            image: anything ``load_image`` takes.
            boxes: [n, 4] x1, y1, x2, y2 in pixels; None: windows over the image for models that take boxes, else the
                regions that the model makes by itself.

        Raises:
            UsageError: the model cannot look into given boxes, or there are none.
            DataError: these are no boxes. ImageError: the image is missing or damaged.
        """
        ref = image_reference(image, 0)
        if isinstance(image, bytes) or isinstance(ref, OpenedImage):
            ref = replace(ref, key="")  # what it shows tells it from others, not a number
        if not self.takes_boxes:
            if boxes is not None:
                raise UsageError(
                    "this model makes its own regions and cannot look into given boxes",
                    hint="leave the boxes out, or train with a vision encoder that takes boxes",
                )
            return ref
        if boxes is None:
            boxes = windows(*load_image(image).size)
        given = np.asarray(boxes, dtype=np.float32)
        if not given.size:
            raise UsageError("no box to choose from", hint="leave the boxes out to try windows over the image")
        return BoxedImage(ref, GivenBoxes(given))

    def ground(
        self, asked: Sequence[tuple[AnyImage, str]], *, batch_tokens: int = 8192, progress: bool = False
    ) -> list[Grounding]:
        """Judge candidates; those of one image that follow one another share the work on it.

        Args:
            asked: images (with their boxes, see :meth:`candidates`) and expressions.
            batch_tokens: positions per pass.
            progress: show a bar on stderr.

        Returns:
            for each the regions that the model saw, the whole image first.

        Raises:
            UsageError: an expression is empty.
            ImageError: an image is missing or damaged.
        """
        if not all(text.strip() for _, text in asked):
            raise UsageError("an expression is empty")
        processor = self.bert.processor
        texts = processor.text_examples([text for _, text in asked])
        examples = [Example(text.token_ids, image=image) for text, (image, _) in zip(texts, asked, strict=True)]
        found: list[Grounding] = []
        with tqdm(total=len(asked), desc="expressions", disable=not progress, unit="expression") as bar:
            for part in in_runs(processor, examples, batch_tokens):
                found += self._judge(part)
                bar.update(len(part))
        return found

    @torch.inference_mode()
    def _judge(self, examples: list[Example]) -> list[Grounding]:
        batch = collate(examples, self.bert.processor.images).to(self.bert.device)
        assert batch.regions is not None
        logits = read_head(self.bert.model, "grounding", batch, region_places(batch)).logits
        assert logits is not None
        scores = logits.squeeze(1).float().sigmoid().cpu()
        boxes = batch.regions.boxes.float().cpu().numpy()
        counts = [len(spec.region_rows) for spec in batch.sequences]
        return [
            Grounding(_as_given(boxes[spec.region_rows], example.image), part.numpy())
            for spec, example, part in zip(batch.sequences, examples, scores.split(counts), strict=True)
        ]


def cannot_ground(bert: Any) -> str | None:
    """Why a model cannot ground expressions; None where it can."""
    model, processor = getattr(bert, "model", None), getattr(bert, "processor", None)
    if model is None or "grounding" not in model.heads:
        return "this model does not ground expressions"
    blind = processor is None or processor.images is None
    return BLIND if blind else None


def ground(bert: MMBert, image: Any, expression: str, boxes: Any = None) -> Grounding:
    """What one expression means in one image; see :meth:`MMBert.ground`."""
    grounder = Grounder(bert)
    seen = grounder.candidates(image, boxes)
    (found,) = grounder.ground([(seen, expression)])
    return chosen_of(found, seen)


def chosen_of(found: Grounding, image: AnyImage) -> Grounding:
    """The answer over the given boxes alone: the whole image, which the model also sees, is no choice."""
    count = len(image.given) if isinstance(image, BoxedImage) else len(found.boxes)
    return Grounding(found.boxes[-count:], found.scores[-count:])


def _as_given(boxes: np.ndarray, image: AnyImage | None) -> np.ndarray:
    """The regions' boxes, those that were given as they were: encoders may cut them to what they see."""
    given = image.given.boxes if isinstance(image, BoxedImage) else boxes[:0]
    return np.concatenate([boxes[: len(boxes) - len(given)], given]) if len(given) else boxes
