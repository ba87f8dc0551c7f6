"""Networks and examples small enough to be made while testing, with weights in which nothing is zero by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbert.data.images import OpenedImage
from mmbert.data.packing import Example, collate, regions_table
from mmbert.data.records import ImageRef
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import RegionTable
from mmbert.objectives.base import StepContext
from mmbert.vision.encoders.base import VisionEncoder
from mmbert.vision.regions import Regions

FEATURES, CLASSES = 6, 5

SENTENCES = [
    "ein Elefant", "un éléphant dans la neige", "a dog", "двое собак бегут по снегу", "狗", "สุนัขวิ่งอยู่บนหิมะ", "",
    "a dog and two children with a red ball in the deep snow", "كلب",
]  # fmt: skip


def tiny_config(**changes: Any) -> MMBertConfig:
    """Two layers of 16; no dropout; vision enters with full strength."""
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 64,
        "visual_size": 16,
        "visual_scale_text_init": 1.0,
        "visual_scale_object_init": 1.0,
        "region_feature_size": FEATURES,
        "coordinate_frequencies": 3,
        "region_dropout": 0.0,
        "num_region_classes": CLASSES,
        "region_regression": True,
        "embedding_size": 8,
        "max_text_tokens": 32,
    }
    return MMBertConfig(**(sizes | changes))


def tiny_network(seed: int = 0, *, dtype: torch.dtype = torch.float32, **changes: Any) -> MMBertForPreTraining:
    """A network in eval mode whose every parameter is random: no bias, scale or mask vector is left at its start."""
    model = MMBertForPreTraining(tiny_config(**changes))
    shake(model, seed)
    return model.to(dtype).eval()


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value: weights of norms near 1, everything else near 0."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(noise + 1 if id(parameter) in norms else noise)


@dataclass(frozen=True)
class Picture:
    """An image known by its regions alone; region 0 is the whole image."""

    key: str
    regions: Regions

    @property
    def ref(self) -> ImageRef:
        return ImageRef(data=self.key.encode(), key=self.key)


def picture(key: str, regions: int, rng: np.random.Generator) -> Picture:
    """A picture with ``regions`` boxes (whole image included), random features and class distributions."""
    width, height = (int(n) for n in rng.integers(20, 400, 2))
    corners = rng.random((regions, 2, 2))
    low, high = corners.min(1), corners.max(1)
    boxes = np.concatenate([low, high], 1) * np.array([width, height, width, height])
    boxes[0] = (0, 0, width - 1, height - 1)
    classes = rng.dirichlet(np.ones(CLASSES), regions)
    return Picture(
        key,
        Regions(
            boxes.astype(np.float32),
            rng.standard_normal((regions, FEATURES)).astype(np.float32),
            (width, height),
            classes.astype(np.float32),
        ),
    )


class KnownRegions:
    """Stands where a vision encoder's pixels or a feature file stand: looks regions up by the image's key."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = {p.key: p for p in pictures}
        self.asked: list[list[str]] = []

    def table(
        self, images: Sequence[ImageRef | OpenedImage], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Tensor | None]:
        self.asked.append([image.key for image in images])
        first_rows, table = regions_table([self.pictures[image.key].regions for image in images])
        return first_rows, table, None


class Quarters(VisionEncoder):
    """The whole image and its four quarters; features are mean colours."""

    image_size, feature_size, regions_per_image = 8, 3, 5

    def boxes(self, width: int, height: int) -> np.ndarray:
        w, h = width / 2, height / 2
        quarters = [(x, y, x + w, y + h) for y in (0, h) for x in (0, w)]
        return np.array([(0, 0, width, height), *quarters], dtype=np.float32)

    def forward(self, pixels: Tensor, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        cells = scaled.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).flatten(2).transpose(1, 2)
        return torch.cat([cells.mean(1, keepdim=True), cells], 1).flatten(0, 1), None


def random_example(rng: np.random.Generator, pictures: Sequence[Picture], vocabulary: int = 60) -> Example:
    """Text alone, an image alone, or both; with or without hidden regions, ties and a choice of regions."""
    ids = rng.integers(1, vocabulary, int(rng.integers(1, 9)))
    segments = rng.integers(0, 2, len(ids)) if rng.random() < 0.3 else 0
    if rng.random() < 0.35:
        return Example(ids, segments)
    chosen = pictures[int(rng.integers(len(pictures)))]
    count = len(chosen.regions)
    example = Example(ids if rng.random() < 0.8 else ids[:2], image=chosen.ref)
    if rng.random() < 0.4:  # some of the regions only; the whole image stays first
        kept = 1 + np.flatnonzero(rng.random(count - 1) < 0.6)
        example = replace(example, region_numbers=np.concatenate([[0], kept]))
    numbers = np.arange(count) if example.region_numbers is None else example.region_numbers
    if rng.random() < 0.6:
        hidden = rng.random(len(numbers)) < 0.5
        hidden[0] = False
        example = replace(example, masked=hidden)
    if rng.random() < 0.4:
        example = replace(example, ties=rng.choice(numbers, len(example.token_ids)))
    return example


def random_examples(seed: int, count: int) -> tuple[list[Example], KnownRegions]:
    """``count`` of them over three pictures."""
    rng = np.random.default_rng(seed)
    pictures = [picture(f"p{i}", int(rng.integers(2, 7)), rng) for i in range(3)]
    return [random_example(rng, pictures) for _ in range(count)], KnownRegions(pictures)


def step_of(
    model: MMBertForPreTraining, examples: Sequence[Example], images: KnownRegions | None = None
) -> StepContext:
    """What an objective gets: the examples packed and encoded together."""
    batch = collate(examples, images)
    return StepContext(model, batch, model(batch))


def states_alone(model: MMBertForPreTraining, example: Example, images: KnownRegions | None = None) -> Tensor:
    """[length, H] last states of one example encoded by itself."""
    with torch.no_grad():
        return model(collate([example], images)).last_hidden_state


def projected(layer: torch.nn.Linear, state: Tensor) -> np.ndarray:
    """A unit vector by hand: weight times state, plus the bias where there is one, divided by its length."""
    vector = layer.weight.detach().double().numpy() @ state.detach().double().numpy()
    if layer.bias is not None:
        vector = vector + layer.bias.detach().double().numpy()
    return vector / np.linalg.norm(vector)
