"""What the encoder saves itself changes no result: states of chosen positions only, and batches run by parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, picture, random_example, tiny_network

from mmbert.data.packing import collate
from mmbert.model import encoder
from mmbert.model.attention import cut_plan, plan_attention
from mmbert.model.packed import PackedBatch

torch.set_num_threads(1)
MODEL = tiny_network()


def random_batch(seed: int, count: int) -> PackedBatch:
    rng = np.random.default_rng(seed)
    pictures = [picture(f"p{i}", int(rng.integers(2, 7)), rng) for i in range(3)]
    return collate([random_example(rng, pictures) for _ in range(count)], KnownRegions(pictures))


def random_positions(batch: PackedBatch, seed: int) -> torch.Tensor:
    """In any order, some of them twice."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, batch.num_positions, int(rng.integers(0, 2 * batch.num_positions))))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9), parts=st.booleans())
def test_chosen_positions_have_the_states_that_the_whole_pass_gives_them(seed: int, count: int, parts: bool) -> None:
    batch = random_batch(seed, count)
    positions = random_positions(batch, seed)
    with torch.set_grad_enabled(not parts):
        whole, chosen = MODEL(batch), MODEL(batch, positions=positions)
    torch.testing.assert_close(chosen.last_hidden_state, whole.last_hidden_state[positions], atol=1e-5, rtol=0)
    torch.testing.assert_close(chosen.pooled, whole.pooled, atol=1e-5, rtol=0)


def test_gradients_of_chosen_positions_are_those_of_the_whole_pass() -> None:
    batch = random_batch(1, 6)
    positions = random_positions(batch, 1)

    def gradients(**options: torch.Tensor) -> dict[str, torch.Tensor | None]:
        MODEL.zero_grad()
        output = MODEL(batch, **options)
        states = output.last_hidden_state if options else output.last_hidden_state[positions]
        (states.square().sum() + output.pooled.sum()).backward()
        return {name: p.grad for name, p in MODEL.named_parameters()}

    wanted, found = gradients(), gradients(positions=positions)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_chosen_positions_with_gradient_checkpointing() -> None:
    model, batch = tiny_network(), random_batch(2, 5)
    wanted = model(batch).last_hidden_state[batch.starts]
    # transformers has renamed it within version 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    found = model(batch, positions=batch.starts).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    found.sum().backward()
    assert model.trunk.encoder.layers[0].output.weight.grad is not None


def test_other_layers_states_and_weights_stay_whole_beside_chosen_positions() -> None:
    batch = random_batch(3, 5)
    options = {"output_hidden_states": True, "output_attentions": True}
    whole, chosen = MODEL(batch, **options), MODEL(batch, positions=batch.starts, **options)
    for mine, theirs in zip(chosen.hidden_states[:-1], whole.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(chosen.attentions[-1], whole.attentions[-1], strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("numbers", [1, 600, 2000])
def test_a_batch_run_by_parts_gives_what_it_gives_at_once(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(4, 12)
    wanted = MODEL(batch)
    monkeypatch.setattr(encoder, "NUMBERS_PER_THREAD", numbers)
    with torch.inference_mode():
        found = MODEL(batch)
        chosen = MODEL(batch, positions=batch.starts.flip(0))
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(chosen.last_hidden_state, found.last_hidden_state[batch.starts.flip(0)])


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30), limit=st.integers(1, 60))
def test_parts_are_whole_sequences_up_to_the_limit_and_lose_none(lengths: list[int], limit: int) -> None:
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    plan = plan_attention(lengths, bounds)
    parts = list(cut_plan(plan, limit))
    assert [start for start, _, _ in parts] == [0, *(end for _, end, _ in parts[:-1])]
    assert parts[-1][1] == sum(lengths)
    found = []
    for start, end, part in parts:
        inside = [length for count, length in part.groups for _ in range(count)]
        assert sum(inside) == end - start
        assert end - start <= limit or len(inside) == 1
        assert part.cu_seqlens.tolist() == [0, *np.cumsum(inside)]
        assert part.longest == max(inside)
        found += inside
    assert sorted(found) == sorted(lengths)
