"""Dropout: how much it drops, what it keeps, and that it is off in evaluation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.model.dropout import Dropout, DropoutMask, dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_it_drops_the_share_it_is_told_to(rate: float) -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(1000, 1000), rate) == 0).double().mean()
    assert float(dropped) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1e6) ** 0.5 + 2**-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5), (0, 4)])
def test_what_stays_is_scaled_so_that_the_mean_does_too(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=dtype)
    result = dropout(values, 0.25)
    assert result.dtype == dtype
    assert result.shape == values.shape
    kept = result != 0
    torch.testing.assert_close(result[kept], values[kept] * torch.tensor(1 / 0.75, dtype=dtype))


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(1_000_000), 0.5) == 0).double() - 0.5
    for distance in range(1, 9):
        correlation = float((dropped[distance:] * dropped[:-distance]).mean() * 4)
        assert abs(correlation) < 0.005, f"places {distance} apart"


def test_the_gradient_flows_through_what_stays_only() -> None:
    values = torch.ones(1000, requires_grad=True)
    result = dropout(values, 0.3)
    result.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, result.detach())


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.float64]))
def test_a_bit_is_kept_for_each_value(shape: list[int], dtype: torch.dtype) -> None:
    drawn, stays = DropoutMask.draw(torch.Size(shape), 0.4)
    assert drawn.kept.nbytes == -(-stays.numel() // 8)
    torch.testing.assert_close(drawn.factors(dtype), stays.to(dtype) / 0.6)


def test_a_seed_decides_it() -> None:
    module, values = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first = module(values)
    torch.manual_seed(3)
    assert torch.equal(module(values), first)
    assert not torch.equal(module(values), first)


def test_evaluation_and_rate_zero_leave_the_very_tensor() -> None:
    values = torch.ones(5)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values


def test_rate_one_drops_everything() -> None:
    assert not Dropout(1.0)(torch.ones(50)).any()


def test_a_compiled_program_drops_the_same() -> None:
    torch._dynamo.reset()

    def layer(values: torch.Tensor) -> torch.Tensor:
        return dropout(values * 2, 0.3) + 1

    compiled = torch.compile(layer, dynamic=True, backend="aot_eager")
    for shape in ((7, 5), (8, 5), (3, 5)):
        values = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
        results = []
        for function, given_values in zip((layer, compiled), values, strict=True):
            torch.manual_seed(3)
            results.append(function(given_values))
            results[-1].sum().backward()
        torch.testing.assert_close(*results)
        torch.testing.assert_close(values[0].grad, values[1].grad)
