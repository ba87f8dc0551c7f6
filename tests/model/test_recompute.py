"""Tensors that are made again for the backward pass: the same bits, less memory."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_network
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmbert.model import attention
from mmbert.model.attention import AttentionPlan, grouped_attention, plan_attention
from mmbert.model.packed import SequenceSpec, pack
from mmbert.model.recompute import recomputable, recomputed_norm, recomputing

torch.set_num_threads(1)
DROPPING = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}


def gradients(network: nn.Module, lengths: list[int], *, again: bool) -> tuple[Tensor, dict[str, Tensor]]:
    batch = pack([SequenceSpec(np.arange(1, 1 + n)) for n in lengths])
    network.zero_grad()
    torch.manual_seed(2)
    with recomputing() if again else nullcontext():
        states = network(batch).last_hidden_state
    states.square().sum().backward()
    return states, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropping", [{}, DROPPING])
def test_gradients_are_those_of_what_was_kept_bit_by_bit(dtype: torch.dtype, dropping: dict[str, float]) -> None:
    network = tiny_network(dtype=dtype, **dropping).train()
    for lengths in ([3, 5, 3], [7], [1, 2, 4, 4]):
        kept, again = (gradients(network, lengths, again=again) for again in (False, True))
        assert torch.equal(kept[0], again[0])
        assert kept[1].keys() == again[1].keys()
        assert all(torch.equal(again[1][name], gradient) for name, gradient in kept[1].items())


def attended(qkv: Tensor, plan: AttentionPlan, flowing: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
    """Attention and the gradient of queries, keys and values, with the same weights dropped each time."""
    qkv = qkv.clone().requires_grad_()
    torch.manual_seed(5)
    with pytest.MonkeyPatch.context() as patch:
        if not again:
            patch.setattr(attention, "weights_made_again", lambda qkv: False)
        mixed = grouped_attention(qkv, plan, 2, 0.25)
    mixed.backward(flowing)
    assert qkv.grad is not None
    return mixed.detach(), qkv.grad


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3), st.integers(0, 2**31))
def test_attention_is_made_again_for_sequences_of_any_lengths(lengths: list[int], behind: int, seed: int) -> None:
    """Also where rows stand behind the sequences, and where the plan takes lengths together. Heads are 4 wide: weights
    of up to 8 positions are kept, those of 9 made again."""
    torch.manual_seed(seed)
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    plan = plan_attention(lengths, starts)
    qkv, flowing = (torch.randn(sum(lengths) + behind, width, dtype=torch.float64) for width in (24, 8))
    kept, again = (attended(qkv, plan, flowing, again=again) for again in (False, True))
    for first, second in zip(kept, again, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [10, 80])
def test_attention_made_again_in_low_precision_is_as_near(length: int) -> None:
    """Below and above the length up to which it is done in single precision."""
    torch.manual_seed(0)
    plan = plan_attention([length] * 3, torch.arange(4, dtype=torch.int32) * length)
    exact = torch.randn(3 * length, 48).to(torch.bfloat16).double()
    flowing = torch.randn(3 * length, 16).to(torch.bfloat16).double()
    wanted = attended(exact, plan, flowing, again=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = attended(exact.bfloat16(), plan, flowing.bfloat16(), again=True)
    for first, second in zip(wanted, found, strict=True):
        assert second.dtype == torch.bfloat16
        torch.testing.assert_close(second.double(), first, rtol=0.03, atol=0.03)


def test_what_attention_keeps_does_not_grow_with_the_square_of_the_length() -> None:
    def kept(length: int) -> float:
        plan = plan_attention([length], torch.tensor([0, length], dtype=torch.int32))
        qkv = torch.randn(length, 48, requires_grad=True)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            mixed = grouped_attention(qkv, plan, 4)
        assert mixed.requires_grad
        return sum(event.self_cpu_memory_usage for event in found.key_averages()) / length

    assert kept(400) == pytest.approx(kept(100), rel=0.05)


def held(*, again: bool) -> int:
    """Bytes that a forward pass leaves behind for the backward pass."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 96}
    network = tiny_network(**DROPPING, **sizes, vocab_size=100).train()
    batch = pack([SequenceSpec(np.arange(1, 81)) for _ in range(8)])  # too long for weights to be kept
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found,
        recomputing() if again else nullcontext(),
    ):
        states = network(batch).last_hidden_state
    assert states.requires_grad
    return sum(event.self_cpu_memory_usage for event in found.key_averages())


def test_at_least_a_third_less_is_kept() -> None:
    assert held(again=True) < held(again=False) * 2 / 3


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 2**31))
def test_an_address_that_is_used_anew_is_not_mistaken(kept: list[bool], seed: int) -> None:
    """Freed tensors leave their address to others of the same shape, which have nothing to do with them."""
    torch.manual_seed(seed)
    norm, results = nn.LayerNorm(8), []
    inputs = [torch.randn(4, 8, requires_grad=True) for _ in kept]
    with recomputing():
        for values, used in zip(inputs, kept, strict=True):
            normed = recomputed_norm(norm, values)
            if used:
                results.append(normed.square().sum())
            del normed
            results.append((values * 2).square().sum())  # keeps a fresh tensor of this size
    torch.stack(results).sum().backward()
    for values, used in zip(inputs, kept, strict=True):
        twin = values.detach().requires_grad_()
        expected = (twin * 2).square().sum() + (norm(twin).square().sum() if used else 0.0)
        torch.testing.assert_close(values.grad, torch.autograd.grad(expected, twin)[0])


def test_outside_nothing_is_made_again() -> None:
    def never() -> Tensor:
        raise AssertionError

    values = torch.randn(3, requires_grad=True)
    recomputable(values * 2, never).square().sum().backward()
    with recomputing(), torch.no_grad():
        recomputable(values * 2, never).square()
    with recomputing():
        result = recomputable(values * 2, never).square().sum()
    with pytest.raises(AssertionError):
        result.backward()


@pytest.mark.parametrize("of", [torch.tanh, lambda values: torch.softmax(values, -1), nn.LayerNorm(8), torch.exp])
def test_nothing_stays_behind_of_what_no_loss_reads(of: nn.Module) -> None:
    """Some operations keep their own result: kept as it is, it would keep itself, and each step's graph for ever."""
    values = torch.randn(4, 8, requires_grad=True)
    with recomputing():
        result = of(values * 2)
    there = weakref.ref(result)
    del result
    gc.collect()
    assert there() is None


def test_steps_leave_nothing_behind() -> None:
    """As many tensors after ten steps as after two, of a network whose pooled states no loss reads."""
    network = tiny_network(**DROPPING).train()

    def there() -> int:
        gc.collect()
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    counted = []
    for _ in range(10):
        gradients(network, [3, 5, 3], again=True)
        network.zero_grad()
        counted.append(there())
    assert counted[-1] == counted[1]
