"""Clipping on a CPU, against numpy in fp64 and against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbert.training.clipping import PIECE, clip_gradients

torch.set_num_threads(1)


def parameters(sizes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
    return [*found, nn.Parameter(torch.zeros(3))]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=4),
    st.sampled_from([0.01, 1.0, 1e6, float("inf")]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_it_clips_as_pytorch_does(sizes: list[tuple[int, ...]], limit: float, dtype: torch.dtype) -> None:
    ours, theirs = parameters(sizes, dtype), parameters(sizes, dtype)
    tolerance = {"rtol": 0.02, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    expected = nn.utils.clip_grad_norm_([p for p in theirs if p.grad is not None], limit)
    torch.testing.assert_close(clip_gradients(ours, limit), expected.float(), **tolerance)
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(one.grad, other.grad, **tolerance)
    assert ours[-1].grad is None


def test_the_norm_of_a_large_table_is_right() -> None:
    """To a millionth, where PyTorch's own is off by half a thousandth."""
    (table, _) = parameters([(3 * PIECE + 5, 4)])
    exact = np.linalg.norm(table.grad.double().numpy())
    assert clip_gradients([table], float("inf")).item() == pytest.approx(exact, rel=1e-6)
    clip_gradients([table], 1.0)
    assert np.linalg.norm(table.grad.double().numpy()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(value: float) -> None:
    first, second, _ = parameters([(3,), (4, 2)])
    second.grad[1, 1] = value
    assert not torch.isfinite(clip_gradients([first, second], 1.0))


OPTIMISERS = {
    "adamw": lambda own, **how: torch.optim.AdamW(own, lr=0.1, weight_decay=0.1, **how),
    "adam": lambda own, **how: torch.optim.Adam(own, lr=0.1, **how),
    "sgd": lambda own, **how: torch.optim.SGD(own, lr=0.1, momentum=0.9, **how),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("fused", [True, False])
def test_an_optimiser_scales_in_its_step(name: str, fused: bool) -> None:
    """Three steps, of which the middle one's gradient is not clipped, as after PyTorch's clipping."""
    sizes = [(7, 33), (5,), (2, 3, 4)]
    ours, theirs = parameters(sizes), parameters(sizes)
    mine, other = OPTIMISERS[name](ours, fused=fused), OPTIMISERS[name](theirs, foreach=True)
    generator = torch.Generator().manual_seed(1)
    for size in (1.0, 1e-3, 5.0):
        for one, two in zip(ours[:-1], theirs[:-1], strict=True):
            one.grad = size * torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        norm = clip_gradients(ours, 0.5, mine)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, 0.5))
        mine.step()
        other.step()
        for one, two in zip(ours[:-1], theirs[:-1], strict=True):
            torch.testing.assert_close(one.grad, two.grad)  # scaled for whoever looks at it afterwards
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_taken_leaves_nothing() -> None:
    """Measured anew, the gradient decides anew."""
    own, _ = parameters([(4, 4)])
    optimizer = torch.optim.SGD([own], lr=1.0, fused=True)
    clip_gradients([own], 0.5, optimizer)
    own.grad = torch.full((4, 4), 0.01)
    clip_gradients([own], 0.5, optimizer)
    optimizer.step()
    torch.testing.assert_close(own.detach(), torch.full((4, 4), -0.01))


def test_gradients_that_are_not_contiguous_count() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    parameter.grad = torch.arange(12.0).view(4, 3).T
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(np.sqrt((np.arange(12.0) ** 2).sum()))
    assert parameter.grad.norm().item() == pytest.approx(1.0)
