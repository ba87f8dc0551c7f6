"""Grounding: an expression and an image with candidate boxes; which of them does the expression mean?

One record gives one sequence, ``[CLS] expression [SEP] regions [END]``, with a label for each region, the whole image
among them: 1 where it overlaps the true box enough (VL-BERT on RefCOCO+). What the regions are is the vision encoder's
affair: boxes that come with the record (objects or detections), its own grid, or a store's.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import BoxedImage
from mmbert.data.packing import Example, Label
from mmbert.data.records import Record
from mmbert.errors import ConfigError, DataError
from mmbert.tasks.base import Task
from mmbert.text.sides import swap_sides
from mmbert.vision.boxes import overlaps
from mmbert.vision.regions import mirrored_boxes

OBJECTIVES = ("grounding",)


class Options(BaseModel):
    """How a record is read.

    Attributes:
        overlap: intersection over union with the true box from which on a region is a right one.
        flip: chance that the image is flipped left to right, its boxes with it, and "left" and "right" swapped in the
            expression.
    """

    model_config = ConfigDict(extra="forbid")
    overlap: float = Field(default=0.5, gt=0, le=1)
    flip: float = Field(default=0.0, ge=0, le=1)


class GroundingTask(Task):
    """See the module.

    Raises:
        ConfigError: the model reads no images.
    """

    def __init__(self, options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> None:
        self.options = options
        self.processor = processor
        if processor.images is None:
            raise ConfigError("grounding needs regions", hint="give --features STORE, or model.config.vision")

    def cost(self, record: Record) -> int:
        if record.image is None or not record.annotation.get("expression"):
            return 0
        text = record.annotation["expression"]
        longest = max(self.processor.lengths([text, swap_sides(text)] if self.options.flip else [text]))
        regions = self.processor.region_count(self.processor.image_of(record))
        return self.processor.sequence_length(longest) + regions + 1

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        image, size = self.processor.image_of(record), size_of(record)
        text: str = record.annotation["expression"]
        assert image is not None
        true = np.array([record.annotation["box"]], dtype=np.float32)
        if self.options.flip and rng.random() < self.options.flip:
            image, true, text = BoxedImage.mirrored(image), mirrored_boxes(true, size[0]), swap_sides(text)
        right = overlaps(self.processor.boxes_of(image, size), true[0]) >= self.options.overlap
        label = Label("grounding", "region", np.arange(len(right)), right.astype(np.float32))
        return [Example(self.processor.ids(text), image=image, labels={"grounding": label})]


def size_of(record: Record) -> tuple[int, int]:
    """Width and height of the record's image.

    Raises:
        DataError: the corpus does not say it.
    """
    if record.size is None:
        raise DataError("the corpus does not say how large the image is", where=record.origin or record.id)
    return record.size


def build(options: Options, processor: MMBertProcessor, objectives: Collection[str]) -> GroundingTask:
    """Make the task."""
    return GroundingTask(options, processor, objectives)
