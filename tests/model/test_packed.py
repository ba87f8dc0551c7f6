"""Packed sequences: a sequence's result depends on nothing but itself, wherever and with whatever it is packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, picture, random_examples, tiny_network
from torch import Tensor

from mmbert.data.packing import Example, collate
from mmbert.model.packed import (
    BLANK,
    END,
    MASKED_REGION,
    NO_IMAGE,
    REGION,
    TEXT,
    PackedBatch,
    RegionTable,
    SequenceSpec,
    Target,
    pack,
    paired,
)

torch.set_num_threads(1)
MODEL = tiny_network()


def split(states: Tensor, batch: PackedBatch) -> list[Tensor]:
    return list(states.split(batch.lengths))


def weighted_sum(states: Tensor, sequence: int) -> Tensor:
    """A loss that is sensitive to every number of a sequence's states."""
    return (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(sequence))).sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_packed_states_are_those_of_each_sequence_alone(seed: int, count: int) -> None:
    examples, images = random_examples(seed, count)
    batch = collate(examples, images)
    with torch.no_grad():
        together = MODEL(batch)
        for i, (example, states) in enumerate(zip(examples, split(together.last_hidden_state, batch), strict=True)):
            alone = MODEL(collate([example], images))
            torch.testing.assert_close(states, alone.last_hidden_state, atol=1e-5, rtol=0)
            torch.testing.assert_close(together.pooled[i], alone.pooled[0], atol=1e-5, rtol=0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 8))
def test_packed_gradients_are_the_sums_of_those_of_each_sequence_alone(seed: int, count: int) -> None:
    examples, images = random_examples(seed, count)

    def gradients(passes: list[list[int]]) -> dict[str, Tensor]:
        MODEL.zero_grad()
        for numbers in passes:
            batch = collate([examples[i] for i in numbers], images)
            output = MODEL(batch)
            parts = zip(numbers, split(output.last_hidden_state, batch), output.pooled, strict=True)
            sum(weighted_sum(s, i) + weighted_sum(p, i) for i, s, p in parts).backward()
        return {n: p.grad.clone() for n, p in MODEL.named_parameters() if p.grad is not None}

    together = gradients([list(range(count))])
    alone = gradients([[i] for i in range(count)])
    assert together.keys() == alone.keys()
    assert "trunk.embeddings.words.weight" in together
    for name, gradient in together.items():
        scale = max(1.0, float(alone[name].abs().max()))
        torch.testing.assert_close(gradient, alone[name], atol=1e-5 * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_asking_for_some_positions_gives_their_states_and_the_same_pooled_vectors(
    seed: int, data: st.DataObject
) -> None:
    examples, images = random_examples(seed, 6)
    batch = collate(examples, images)
    wanted = torch.tensor(data.draw(st.lists(st.integers(0, batch.num_positions - 1), max_size=12)), dtype=torch.long)
    with torch.no_grad():
        whole, some = MODEL(batch), MODEL(batch, positions=wanted)
    torch.testing.assert_close(some.last_hidden_state, whole.last_hidden_state[wanted], atol=1e-5, rtol=0)
    torch.testing.assert_close(some.pooled, whole.pooled, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_order_of_the_batch_changes_nothing(seed: int, data: st.DataObject) -> None:
    examples, images = random_examples(seed, 7)
    order = data.draw(st.permutations(range(7)))
    first, other = collate(examples, images), collate([examples[i] for i in order], images)
    with torch.no_grad():
        straight = split(MODEL(first).last_hidden_state, first)
        shuffled = split(MODEL(other).last_hidden_state, other)
    for place, i in enumerate(order):
        torch.testing.assert_close(shuffled[place], straight[i], atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
def test_attention_weights_come_per_sequence_in_batch_order_and_sum_to_one(seed: int, count: int) -> None:
    examples, images = random_examples(seed, count)
    batch = collate(examples, images)
    with torch.no_grad():
        layers = MODEL(batch, output_attentions=True).attentions
        assert len(layers) == 2
        for layer in layers:
            assert [tuple(w.shape) for w in layer] == [(2, n, n) for n in batch.lengths]
            for weights in layer:
                torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        for i, example in enumerate(examples):
            alone = MODEL(collate([example], images), output_attentions=True).attentions
            for layer, own in zip(layers, alone, strict=True):
                torch.testing.assert_close(layer[i], own[0], atol=1e-5, rtol=0)


def test_hidden_states_of_all_layers_are_in_stream_order() -> None:
    examples, images = random_examples(5, 6)
    batch = collate(examples, images)
    assert len(set(batch.lengths)) < len(batch.lengths), "some lengths must be equal, or nothing is re-ordered"
    with torch.no_grad():
        output = MODEL(batch, output_hidden_states=True)
        assert len(output.hidden_states) == 3
        torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state, rtol=0, atol=0)
        _, vectors = MODEL.trunk.embed_regions(batch)
        torch.testing.assert_close(output.hidden_states[0], MODEL.trunk.embeddings(batch, vectors))
        for i, example in enumerate(examples):
            alone = MODEL(collate([example], images), output_hidden_states=True).hidden_states
            for layer, own in zip(output.hidden_states, alone, strict=True):
                torch.testing.assert_close(split(layer, batch)[i], own, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_recomputing_layers_in_the_backward_pass_changes_no_gradient() -> None:
    examples, images = random_examples(3, 5)
    batch = collate(examples, images)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_network(1, region_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.trunk.encoder.gradient_checkpointing
        model(batch).last_hidden_state.pow(3).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_layout_of_one_sequence_is_tokens_then_regions_then_end() -> None:
    table = RegionTable(torch.zeros(3, 4), torch.ones(3, 2), torch.zeros(3, 6), masked_rows=torch.tensor([1]))
    spec = SequenceSpec(
        np.array([7, 8, 9]), np.array([0, 0, 1]), 0, np.array([0, 3, 2]), np.array([False, True, False])
    )
    batch = pack([SequenceSpec(np.array([5])), spec], regions=table)
    assert batch.lengths == [2, 7]
    assert batch.cu_seqlens.tolist() == [0, 2, 9]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.starts.tolist() == [0, 2]
    assert batch.token_ids.tolist() == [5, 7, 8, 9]
    assert batch.kinds.tolist() == [TEXT, END, TEXT, TEXT, TEXT, REGION, MASKED_REGION, REGION, END]
    assert batch.position_ids.tolist() == [0, 2, 0, 1, 2, 3, 3, 3, 4]
    assert batch.segment_ids.tolist() == [0, 2, 0, 0, 1, 2, 2, 2, 2]
    assert batch.num_positions == 9
    assert batch.num_sequences == 2


@pytest.mark.parametrize(
    "spec",
    [
        SequenceSpec(np.array([1]), text_rows=3),
        SequenceSpec(np.array([1]), text_rows=-3),
        SequenceSpec(np.array([1, 2]), text_rows=np.array([0, 4])),
        SequenceSpec(np.array([1]), text_rows=0, region_rows=np.array([3])),
        SequenceSpec(np.array([1]), text_rows=0, region_rows=np.array([0, 4])),
        SequenceSpec(np.array([1]), text_rows=0, region_rows=np.array([NO_IMAGE])),
    ],
    ids=["text beyond", "text below", "one text row", "just beyond", "far beyond", "no image"],
)
def test_a_row_outside_the_table_is_an_error(spec: SequenceSpec) -> None:
    table = RegionTable(torch.zeros(3, 4), torch.ones(3, 2), torch.zeros(3, 6))
    with pytest.raises(ValueError, match="row"):
        pack([spec], regions=table)


def test_regions_without_a_table_are_an_error() -> None:
    with pytest.raises(ValueError, match="row"):
        pack([SequenceSpec(np.array([1]), region_rows=np.array([0]))])
    with pytest.raises(ValueError, match="row"):
        pack([SequenceSpec(np.array([1]), text_rows=0)])


def test_a_batch_needs_a_sequence_and_a_sequence_a_position() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack([])
    with pytest.raises(ValueError, match="empty"):
        pack([SequenceSpec(np.array([1])), SequenceSpec(np.zeros(0, dtype=np.int64), end=False)])


def test_region_vectors_of_another_table_are_refused() -> None:
    examples, images = random_examples(0, 6)
    batch = collate(examples, images)
    assert batch.regions is not None
    _, vectors = MODEL.trunk.embed_regions(batch)
    with pytest.raises(ValueError, match="region vectors"):
        MODEL(batch, region_vectors=vectors[:-1])
    with pytest.raises(ValueError, match="region vectors"):
        MODEL(batch, region_vectors=vectors[:, :-1])


def test_blank_regions_are_zero_features_that_still_take_a_place() -> None:
    batch = pack([SequenceSpec(np.array([3, 4]), text_rows=NO_IMAGE, region_rows=np.array([BLANK, BLANK]))])
    with torch.no_grad():
        embedded = MODEL.trunk.embeddings(batch, None)
        parts = MODEL.trunk.embeddings
        nothing = parts.object_visual(torch.zeros(1, MODEL.config.visual_size))[0]  # a LayerNorm's bias, for one
        expected = parts.norm(parts.positions.weight[2] + parts.segments.weight[2] + nothing)
    torch.testing.assert_close(embedded[2], expected)
    torch.testing.assert_close(embedded[3], expected)
    assert batch.lengths == [5]


@pytest.mark.parametrize("masked", [None, np.array([False, True, False, True])], ids=["plain", "masked"])
def test_a_pair_reads_the_texts_tokens_with_the_images_regions(masked: np.ndarray | None) -> None:
    shown = picture("p", 4, np.random.default_rng(0))
    images = KnownRegions([shown])
    words, segments = np.array([5, 6, 7]), np.array([0, 1, 1])
    batch = collate([Example(words, segments), Example(np.array([8, 9]), image=shown.ref, masked=masked)], images)
    joint = paired(*batch.sequences)
    with torch.no_grad():
        output = MODEL(batch)
        again = MODEL(pack([joint], regions=batch.regions), region_vectors=output.region_vectors)
        direct = MODEL(collate([Example(words, segments, shown.ref, masked=masked)], images))
    torch.testing.assert_close(again.last_hidden_state, direct.last_hidden_state, atol=1e-5, rtol=0)


def test_moving_a_batch_moves_every_tensor_and_nothing_else() -> None:
    examples, images = random_examples(2, 5)
    batch = collate(examples, images)
    batch.targets["x"] = Target("x", torch.tensor([0]), torch.tensor([1]), {"more": torch.tensor([2.0])})
    moved = batch.to("meta")
    assert moved.lengths == batch.lengths
    assert moved.device.type == "meta"
    assert moved.regions is not None
    assert moved.regions.features.device.type == "meta"
    assert moved.targets["x"].extra["more"].device.type == "meta"
    assert batch.device.type == "cpu"


def test_asking_for_features_that_nobody_made_is_an_error() -> None:
    table = RegionTable(torch.zeros(2, 4), torch.ones(2, 2))
    with pytest.raises(ValueError, match="no features"):
        MODEL(pack([SequenceSpec(np.array([1]), text_rows=0, region_rows=np.array([0, 1]))], regions=table))


def test_a_head_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="match_head"):
        tiny_network(match_outputs=0).match_logits(torch.zeros(1, 16))
