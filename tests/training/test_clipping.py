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


def test_gradients_that_are_not_contiguous_count() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    parameter.grad = torch.arange(12.0).view(4, 3).T
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(np.sqrt((np.arange(12.0) ** 2).sum()))
    assert parameter.grad.norm().item() == pytest.approx(1.0)
