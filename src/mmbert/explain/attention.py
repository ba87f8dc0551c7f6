"""Attention maps: an image and a caption go in; how much each word and region looks at each other one comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from mmbert.api.processing import no_vision_encoder
from mmbert.data.packing import Example, collate
from mmbert.data.records import RegionBox
from mmbert.errors import UsageError
from mmbert.vision.images import ImageSource, load_image

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.data.images import BoxedImage, OpenedImage

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one image and caption.

    Args:
        caption: the text.
        words: units of the text: words, or word pieces where a script does not part words by spaces.
        spans: [(start, end)] of each unit in ``caption``.
        boxes: [R, 4] x1, y1, x2, y2 of each region as fractions of the image; region 0 is the whole image.
        weights: [layers, heads, W + R, W + R]: row looks at column; words first, then regions. What goes to special
            tokens is left out, so a row sums to at most 1. A word's row is the mean of its pieces' rows, its column
            the sum of their columns.
        match: probability that caption and image belong together; None in a model without match head.
        tokens: the text's positions in the sequence, special tokens among them, each by what it stands for.
        raw: [layers, heads, P, P] of all positions as the network has them, so that a row sums to 1: tokens, regions
            and ``[END]``.
    """

    caption: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    boxes: Array
    weights: Array
    match: float | None
    tokens: tuple[str, ...] = ()
    raw: Array | None = None

    @property
    def positions(self) -> tuple[str, ...]:
        """[P] names of the rows and columns of ``raw``."""
        regions = ("whole image", *(f"region {number}" for number in range(1, len(self.boxes))))
        return (*self.tokens, *regions, "[END]")

    def word_to_region(self, layer: int | None = None, head: int | None = None) -> Array:
        """[W, R] how much each word looks at each region; the mean over layers or heads where None.

        Raises:
            UsageError: there is no such layer or head.
        """
        count = len(self.words)
        return self.chosen(layer, head)[:count, count:]

    def region_to_region(self, layer: int | None = None, head: int | None = None) -> Array:
        """[R, R], as ``word_to_region``."""
        count = len(self.words)
        return self.chosen(layer, head)[count:, count:]

    def chosen(self, layer: int | None = None, head: int | None = None) -> Array:
        """[W + R, W + R] of one layer and head, or their mean."""
        layers, heads = self.weights.shape[:2]
        for name, number, count in (("layer", layer, layers), ("head", head, heads)):
            if number is not None and not 0 <= number < count:
                raise UsageError(f"there is no {name} {number}", hint=f"0 to {count - 1}")
        picked = self.weights if layer is None else self.weights[layer : layer + 1]
        picked = picked if head is None else picked[:, head : head + 1]
        return picked.mean(axis=(0, 1))


Box: TypeAlias = tuple[float, float, float, float]


def attention_maps(model: MMBert, image: ImageSource, caption: str, boxes: Sequence[Box] = ()) -> AttentionMaps:
    """Read ``image`` and ``caption`` together and keep every layer's attention.

    Args:
        boxes: x1, y1, x2, y2 in pixels, for models that look into boxes instead of dividing images themselves.

    Raises:
        UsageError: the caption is empty, or the model has no vision encoder, or divides images itself.
        DataError: a box is none.
        ImageError: the image cannot be opened.
    """
    if not caption.strip():
        raise UsageError("the caption is empty", hint="say what is in the image")
    processor = model.processor
    if processor.images is None:
        raise no_vision_encoder()
    from mmbert.data.images import OpenedImage

    encoded = processor.tokenizer(
        caption, truncation=True, max_length=processor.max_text_tokens, return_offsets_mapping=True
    )
    opened = OpenedImage(load_image(image, keep_alpha=True), "explained")
    example = Example(np.asarray(encoded["input_ids"], dtype=np.int64), image=_boxed(model, opened, boxes))
    batch = collate([example], processor.images).to(model.device)
    with torch.inference_mode():
        output = model.model(batch, output_attentions=True)
        has_match = model.model.match_head is not None and output.pooled is not None
        match = float(torch.sigmoid(model.model.match_logits(output.pooled))[0]) if has_match else None
    raw = np.stack([layer[0].float().cpu().numpy() for layer in output.attentions])  # [layers, heads, P, P]
    tokens, regions = len(example.token_ids), len(batch.sequences[0].region_rows)
    units, spans = _units(encoded, caption)
    assert batch.regions is not None
    looked_into = batch.regions.boxes.cpu().numpy() / np.tile(np.array(opened.image.size, dtype=np.float32), 2)
    return AttentionMaps(
        caption,
        tuple(caption[start:end].strip() for start, end in spans),
        tuple(spans),
        looked_into.clip(0, 1),
        _gathered(raw, units, tokens, regions),
        match,
        _labels(encoded, caption),
        raw,
    )


def _labels(encoded: Any, caption: str) -> tuple[str, ...]:
    """What each token stands for: its part of the caption, or its own name.

    Special tokens have no part, and the mark of a word's start stands where the word's first piece does.
    """
    spans = [*encoded["offset_mapping"], (0, 0)]
    labels = []
    for token, (start, end), (next_start, next_end) in zip(encoded.tokens(), spans, spans[1:], strict=False):
        mark = start <= next_start < min(end, next_end)
        labels.append((not mark and caption[start:end].strip()) or token)
    return tuple(labels)


def _boxed(model: MMBert, image: OpenedImage, boxes: Sequence[Box]) -> OpenedImage | BoxedImage:
    """The image with the boxes that the model is to look into."""
    if not boxes:
        return image
    if model.processor.vision is None or not model.processor.vision.takes_boxes:
        raise UsageError("this model divides images into regions itself", hint="leave the boxes out")
    from mmbert.data.images import BoxedImage

    return BoxedImage.of(image, [RegionBox(box) for box in boxes])


def _units(encoded: Any, caption: str) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Token numbers of each word, and where it stands. Single pieces where the tokenizer sees but one word."""
    words: dict[int, list[int]] = {}
    for token, word in enumerate(encoded.word_ids()):
        start, end = encoded["offset_mapping"][token]
        if word is not None and caption[start:end].strip():
            words.setdefault(word, []).append(token)
    units = list(words.values())
    offsets = encoded["offset_mapping"]
    if len(units) == 1:
        units = _pieces(units[0], offsets)
    return units, [(offsets[unit[0]][0], offsets[unit[-1]][1]) for unit in units]


def _pieces(tokens: list[int], offsets: list[tuple[int, int]]) -> list[list[int]]:
    """Tokens of one word, each by itself but for those that stand at the same place (a mark of the word's start)."""
    units: list[list[int]] = []
    for token in tokens:
        if units and offsets[token][0] < offsets[units[-1][-1]][1]:
            units[-1].append(token)
        else:
            units.append([token])
    return units


def _gathered(raw: Array, units: list[list[int]], tokens: int, regions: int) -> Array:
    """[layers, heads, P, P] of positions to [layers, heads, W + R, W + R] of words and regions."""
    groups = [*units, *([tokens + region] for region in range(regions))]
    total = np.zeros((raw.shape[-1], len(groups)), dtype=np.float32)
    for number, members in enumerate(groups):
        total[members, number] = 1
    mean = total / total.sum(axis=0, keepdims=True).clip(1)
    return mean.T @ raw @ total
