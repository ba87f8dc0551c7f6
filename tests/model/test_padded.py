"""Padded sequences: the same states as packed ones, whatever they are filled up with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, picture, tiny_network
from torch import Tensor

from mmbert.data.packing import Example, collate
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.padded import ImageGraph, MatchGraph, PaddedRegions, PaddedTexts, PaddedTrunk, RegionsGraph, TextGraph

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "product": {"pooling": "product"},
    "two outputs": {"match_outputs": 2},
    "scalars, projection": {"visual_ln": False, "visual_size": 12},
    "frozen words": {"word_embedding_frozen": True, "num_special_words": 20},
    "no region words": {"object_mask_word_embedding": False, "text_only_visual": False},
    "RoBERTa's positions": {"position_padding_idx": 1},
    "ignores regions": {"ignore_regions": True},
}


def padded(rows: list[np.ndarray], junk: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths in one tensor, filled up with ``junk``; and where they are."""
    values = torch.full((len(rows), max(map(len, rows))), junk)
    mask = torch.zeros_like(values)
    for i, row in enumerate(rows):
        values[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row), 1
    return values, mask


def sequences(seed: int, texts: list[int], regions: list[int]) -> tuple[list[Example], KnownRegions]:
    """Texts of so many tokens, each with an image of so many regions (0: none)."""
    rng = np.random.default_rng(seed)
    pictures = [picture(f"p{i}", count, rng) for i, count in enumerate(regions) if count]
    refs = iter(pictures)
    examples = [
        Example(rng.integers(1, 60, length), image=next(refs).ref if count else None)
        for length, count in zip(texts, regions, strict=True)
    ]
    return examples, KnownRegions(pictures)


@torch.no_grad()
def both(model: MMBertForPreTraining, examples: list[Example], images: KnownRegions) -> tuple[Any, list[Tensor]]:
    """What the packed network gives, and the arguments of graphs for the same sequences."""
    batch = collate(examples, images)
    output = model(batch)
    ids, mask = padded([spec.token_ids for spec in batch.sequences], junk=7)
    if batch.regions is None:
        return (batch, output), [ids, mask]
    _, vectors = model.trunk.embed_regions(batch)
    assert vectors is not None
    rows, seen = padded([spec.region_rows for spec in batch.sequences], junk=1)
    return (batch, output), [ids, mask, vectors, rows, seen]


@pytest.mark.parametrize("variant", VARIANTS)
def test_match_logits_are_those_of_the_packed_network(variant: str) -> None:
    model = tiny_network(3, **VARIANTS[variant])
    examples, images = sequences(5, [7, 1, 3, 3], [2, 6, 3, 1])
    (_, output), arguments = both(model, examples, images)
    with torch.no_grad():
        torch.testing.assert_close(MatchGraph(model)(*arguments), model.match_logits(output.pooled), atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    where=st.integers(0, 1),
)
def test_states_of_any_lengths_are_those_of_the_packed_network(
    lengths: list[tuple[int, int]], seed: int, where: int
) -> None:
    model = tiny_network(1)
    examples, images = sequences(seed, [n for n, _ in lengths], [m for _, m in lengths])
    (batch, output), (ids, mask, vectors, rows, seen) = both(model, examples, images)
    place = [0, ids.shape[1]][where]  # the first token, the whole image
    flat = [batch.starts, batch.after_text][where]
    with torch.no_grad():
        found = PaddedTrunk(model.trunk)(PaddedTexts(ids, mask), PaddedRegions(vectors, rows, seen), [place])[:, 0]
    torch.testing.assert_close(found, output.last_hidden_state[flat], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_of_texts_and_images_are_those_of_the_packed_network(variant: str) -> None:
    model = tiny_network(2, **VARIANTS[variant])
    examples, images = sequences(1, [4, 1, 9], [0, 0, 0])
    (batch, output), arguments = both(model, examples, images)
    head = model.embedding_head
    assert head is not None
    with torch.no_grad():
        expected = head.embed_text(output.last_hidden_state[batch.starts])
        torch.testing.assert_close(TextGraph(model)(*arguments), expected, atol=1e-5, rtol=0)
    examples, images = sequences(1, [2, 2, 2], [4, 1, 2])
    ids = np.array([5, 6])
    examples = [Example(ids, image=example.image) for example in examples]
    (batch, output), arguments = both(model, examples, images)
    with torch.no_grad():
        expected = head.embed_image(output.last_hidden_state[batch.starts])
        found = ImageGraph(model, torch.from_numpy(ids)[None])(*arguments[2:])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_stored_regions_are_embedded_as_in_the_packed_network() -> None:
    model = tiny_network(4)
    examples, images = sequences(2, [3, 3], [5, 2])
    batch = collate(examples, images)
    assert batch.regions is not None and batch.regions.features is not None
    graph = RegionsGraph(model)
    assert list(graph.axes) == ["features", "boxes", "sizes"]
    with torch.no_grad():
        _, expected = model.trunk.embed_regions(batch)
        found = graph(batch.regions.features, batch.regions.boxes, batch.regions.sizes)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
