"""The input of the encoder, against a second implementation of the published description: padded, with loops, in
float64 and sharing nothing with the package but the weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, Picture, picture, random_example, tiny_config, tiny_network

from mmbert.data.packing import Example, collate
from mmbert.model.configuration import MMBertConfig
from mmbert.model.embeddings import box_coordinates
from mmbert.model.modeling import MMBertForPreTraining

torch.set_num_threads(1)
Vector = np.ndarray


class Published:
    """Sections 1 and 2 of the description of the VL-BERT / MM-BERT network, position by position."""

    def __init__(self, model: MMBertForPreTraining) -> None:
        self.config: MMBertConfig = model.config
        self.w = {k.removeprefix("trunk."): v.double().numpy() for k, v in model.state_dict().items()}

    def norm(self, x: Vector, weight: Vector, bias: Vector) -> Vector:
        return (x - x.mean()) / math.sqrt(x.var() + 1e-12) * weight + bias

    def coordinates(self, box: Vector, width: float, height: float) -> Vector:
        x1, y1, x2, y2 = (float(n) for n in box)
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        count = self.config.coordinate_frequencies
        numbers = []
        for value in values:
            angles = [100 * value / 1000 ** (d / count) for d in range(count)]
            numbers += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        return np.array(numbers)

    def region(self, box: Vector, size: tuple[int, int], feature: Vector) -> Vector:
        joint = np.concatenate([self.coordinates(box, *size), feature.astype(np.float64)])
        w = self.w
        linear = w["region_embedding.projection.weight"] @ joint + w["region_embedding.projection.bias"]
        return np.maximum(linear, 0)

    def visual(self, vector: Vector, which: str) -> Vector:
        w, name = self.w, f"embeddings.{which}_visual"
        if self.config.visual_size != self.config.hidden_size:
            vector = w[f"{name}.projection.weight"] @ vector + w[f"{name}.projection.bias"]
        if self.config.visual_ln:
            return self.norm(vector, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])
        return vector * w[f"{name}.scale"]

    def word(self, token: int) -> Vector:
        if self.config.word_embedding_frozen and token < 1000:
            return self.w["embeddings.special_words.weight"][token]
        return self.w["embeddings.words.weight"][token]

    def position(self, number: int, segment: int) -> Vector:
        shifted = number + self.config.position_padding_idx + 1
        return self.w["embeddings.positions.weight"][shifted] + self.w["embeddings.segments.weight"][segment]

    def finish(self, x: Vector) -> Vector:
        return self.norm(x, self.w["embeddings.norm.weight"], self.w["embeddings.norm.bias"])

    def sequence(self, example: Example, shown: Picture | None) -> Vector:
        """[length, H]."""
        n = len(example.token_ids)
        vectors, hidden, tied_to = self.regions_of(example, shown)
        rows = []
        for i, token in enumerate(example.token_ids):
            segment = example.segments if isinstance(example.segments, int) else int(example.segments[i])
            if shown is None:
                visual = self.w["embeddings.text_only_visual"]
            else:
                tie = int(example.ties if isinstance(example.ties, int) else example.ties[i])
                visual = tied_to[tie]
            rows.append(self.word(int(token)) + self.visual(visual, "text") + self.position(i, segment))
        for vector, is_hidden in zip(vectors, hidden, strict=True):
            has_own = is_hidden and self.config.object_mask_word_embedding
            word = self.w["embeddings.masked_region_word" if has_own else "embeddings.region_word"]
            rows.append(word + self.visual(vector, "object") + self.position(n, 2))
        rows.append(self.w["embeddings.end_word"] + self.position(n + 1, 2))
        return np.stack([self.finish(row) for row in rows])

    def regions_of(self, example: Example, shown: Picture | None) -> tuple[list[Vector], list[bool], dict[int, Vector]]:
        """Vector of each used region, whether it is hidden, and the vector behind each region number."""
        if shown is None:
            return [], [], {}
        found = shown.regions
        numbers = list(range(len(found))) if example.region_numbers is None else example.region_numbers.tolist()
        hidden = [False] * len(numbers) if example.masked is None else example.masked.tolist()
        features = {i: found.features[i].astype(np.float64) for i in range(len(found))}
        for number, is_hidden in zip(numbers, hidden, strict=True):
            if is_hidden:
                features[number] = self.w["region_embedding.mask_feature"]
        if any(hidden):
            seen = [found.features[k] for k, h in zip(numbers, hidden, strict=True) if k != 0 and not h]
            total = sum((s.astype(np.float64) for s in seen), np.zeros(found.features.shape[1]))
            features[0] = total / (len(seen) + 1e-5)
        vectors = {i: self.region(found.boxes[i], found.size, features[i]) for i in features}
        return [vectors[i] for i in numbers], hidden, vectors


def embedded(model: MMBertForPreTraining, examples: list[Example], images: KnownRegions) -> list[Vector]:
    batch = collate(examples, images)
    with torch.no_grad():
        _, vectors = model.trunk.embed_regions(batch)
        return [part.numpy() for part in model.trunk.embeddings(batch, vectors).split(batch.lengths)]


def agree(model: MMBertForPreTraining, examples: list[Example], pictures: list[Picture]) -> None:
    published = Published(model)
    by_key = {p.key: p for p in pictures}
    for example, found in zip(examples, embedded(model, examples, KnownRegions(pictures)), strict=True):
        expected = published.sequence(example, by_key[example.image.key] if example.image is not None else None)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4 if found.dtype == np.float32 else 1e-8)


OPTIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "scalars instead of norms": {"visual_ln": False, "visual_scale_text_init": 0.7, "visual_scale_object_init": -1.3},
    "wider visual vectors": {"visual_size": 22},
    "wider, with scalars": {"visual_size": 10, "visual_ln": False},
    "no word for masked regions": {"object_mask_word_embedding": False},
    "RoBERTa's positions": {"position_padding_idx": 1, "pad_token_id": 1},
    "frozen words": {"word_embedding_frozen": True, "vocab_size": 1030},
    "more frequencies": {"coordinate_frequencies": 16},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_part_of_every_position(options: dict[str, Any]) -> None:
    model = tiny_network(3, dtype=torch.float64, **options)
    rng = np.random.default_rng(0)
    first, second = picture("first", 5, rng), picture("second", 3, rng)
    hidden = np.array([False, True, False, True, False])
    highest = model.config.vocab_size - 1
    examples = [
        Example(np.array([4, 5, highest])),
        Example(np.array([6]), image=first.ref),
        Example(np.array([7, 8]), np.array([0, 1]), first.ref, masked=hidden),
        Example(np.array([9, 10, 11]), image=second.ref, ties=np.array([0, 2, 1])),
        Example(np.array([9, 10, 11]), image=first.ref, ties=np.array([3, 2, 0]), masked=hidden),
        Example(np.array([12]), image=first.ref, region_numbers=np.array([0, 3]), masked=np.array([False, True])),
        Example(np.array([13]), image=second.ref, masked=np.array([False, True, True])),
        Example(np.array([14, highest]), image=first.ref, region_numbers=np.array([0, 4, 1]), ties=np.array([4, 0])),
    ]
    agree(model, examples, [first, second])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8), option=st.sampled_from(sorted(OPTIONS)))
def test_any_batch(seed: int, count: int, option: str) -> None:
    rng = np.random.default_rng(seed)
    pictures = [picture(f"p{i}", int(rng.integers(2, 6)), rng) for i in range(3)]
    model = tiny_network(seed % 1000, dtype=torch.float64, **OPTIONS[option])
    agree(model, [random_example(rng, pictures) for _ in range(count)], pictures)


def test_single_precision_is_near_the_formula_too() -> None:
    rng = np.random.default_rng(4)
    pictures = [picture(f"p{i}", 4, rng) for i in range(3)]
    agree(tiny_network(8), [random_example(rng, pictures) for _ in range(8)], pictures)


def test_a_whole_image_whose_every_region_is_hidden_is_nothing() -> None:
    """The mean of no feature is zero, not a division by zero."""
    model = tiny_network(3, dtype=torch.float64)
    shown = picture("p", 3, np.random.default_rng(0))
    agree(model, [Example(np.array([3]), image=shown.ref, masked=np.array([False, True, True]))], [shown])


def test_coordinates_of_a_known_box() -> None:
    box, size = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[200.0, 100.0]])
    found = box_coordinates(box.double(), size.double(), 256)[0]
    assert found.shape == (2048,)
    for start, percent in zip(range(0, 2048, 512), (10.0, 40.0, 10.0, 40.0), strict=True):
        for d in (0, 1, 100, 255):
            angle = percent / 1000 ** (d / 256)
            assert float(found[start + d]) == pytest.approx(math.sin(angle), abs=1e-12)
            assert float(found[start + 256 + d]) == pytest.approx(math.cos(angle), abs=1e-12)


def test_low_precision_weights_do_not_spoil_coordinates() -> None:
    """In bf16 a percentage like 87.3 is off by a quarter: sines have to be taken before the numbers are rounded."""
    model = tiny_network(3, coordinate_frequencies=256)
    rng = np.random.default_rng(0)
    pictures = [picture("p", 6, rng)]
    batch = collate([Example(np.array([4]), image=pictures[0].ref)], KnownRegions(pictures))
    with torch.no_grad():
        _, exact = model.trunk.embed_regions(batch)
        _, rounded = model.to(torch.bfloat16).trunk.embed_regions(batch)
    assert rounded.dtype == torch.bfloat16
    difference = (rounded.float() - exact).pow(2).mean() / exact.pow(2).mean()
    assert float(difference) < 1e-3


def test_frozen_words_learn_in_their_first_thousand_rows_only() -> None:
    model = tiny_network(3, word_embedding_frozen=True, vocab_size=1030)
    batch = collate([Example(np.array([4, 999, 1000, 1029, 4]))])
    model(batch).last_hidden_state.pow(3).sum().backward()
    words, special = model.trunk.embeddings.words.weight, model.trunk.embeddings.special_words.weight
    assert words.grad is None
    assert special.shape == (1000, 16)
    assert special.grad.abs().sum(1).nonzero().flatten().tolist() == [4, 999]


def test_frozen_positions_are_not_trained() -> None:
    model = tiny_network(3, position_embedding_frozen=True)
    model(collate([Example(np.array([4, 9]))])).last_hidden_state.pow(3).sum().backward()
    assert model.trunk.embeddings.positions.weight.grad is None
    assert model.trunk.embeddings.segments.weight.grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18, "num_attention_heads": 4}, "multiple"),
        ({"match_outputs": 3}, "match_outputs"),
        ({"with_pooler": False}, "pooler"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "wide"},
        {"num_hidden_layers": 2.5},
        {"visual_ln": "yes"},
        {"vision": "grid"},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(wrong))):
        tiny_config(**wrong)


def test_whole_numbers_are_fractions_too() -> None:
    assert tiny_config(hidden_dropout_prob=0, visual_scale_text_init=1, initializer_range=1).visual_scale_text_init == 1
