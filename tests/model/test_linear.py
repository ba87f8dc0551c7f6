"""The network's linear layer gives what PyTorch's does, whichever library computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmbert.model import linear as module
from mmbert.model.linear import Linear, linear

torch.set_num_threads(1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 5), (40, 5), (2, 3, 5), (5,), (0, 5), (2, 0, 5)])
def test_inference_equals_pytorch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, values = Linear(5, 7, bias=bias), torch.randn(shape)
    wanted = nn.functional.linear(values, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(values), wanted.detach(), atol=1e-6, rtol=1e-5)


def test_inference_takes_strided_values() -> None:
    weight, wide = torch.randn(7, 5), torch.randn(4, 10)
    with torch.no_grad():
        for values in (wide[:, ::2], wide[:, :5], torch.randn(5, 4).T, torch.randn(1, 5).expand(6, 5)):
            torch.testing.assert_close(linear(values, weight), values @ weight.T, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_theirs(dtype: torch.dtype) -> None:
    layer = Linear(5, 7).to(dtype)
    with torch.no_grad():
        assert layer(torch.randn(3, 5, dtype=dtype)).dtype == dtype


def test_autocast_is_heeded() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert Linear(5, 7)(torch.randn(3, 5)).dtype == torch.bfloat16


def test_gradients_flow() -> None:
    layer, values = Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    layer(values).sum().backward()
    assert values.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None


def test_a_wrong_width_is_pytorchs_error() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(5, 7)(torch.randn(3, 6))


def test_it_works_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, values = Linear(5, 7), torch.randn(3, 5)
    with torch.no_grad():
        found = layer(values)
        monkeypatch.setattr(module, "ONEDNN", None)
        torch.testing.assert_close(layer(values), found, atol=1e-6, rtol=1e-5)


def test_an_export_contains_pytorchs_own_operator() -> None:
    with torch.no_grad():
        program = torch.export.export(Linear(5, 7).eval(), (torch.randn(3, 5),))
    assert "mkldnn" not in str(program.graph)
