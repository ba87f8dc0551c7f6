"""The network's linear layer gives what PyTorch's does, whichever library computes it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_network
from torch import Tensor, nn

from mmbert.data.packing import Example, Label, collate
from mmbert.model import linear as module
from mmbert.model.linear import FEW, ROWS, Linear, PackedWeights, linear
from mmbert.training.module import TrainingModule

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


@pytest.mark.skipif(module.ONEDNN is None, reason="this PyTorch is built without oneDNN")
def test_few_rows_are_multiplied_by_onednn_and_many_by_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def onednn(values: Tensor, weight: Tensor, bias: Tensor | None, *rest: object) -> Tensor:
        counted.append(values[..., 0].numel())
        return nn.functional.linear(values, weight, bias)

    monkeypatch.setattr(module, "ONEDNN", onednn)
    layer = Linear(5, 7)
    with torch.no_grad():
        for shape in ((1, 5), (module.MANY - 1, 5), (module.MANY, 5), (2, module.MANY // 2, 5), (3, module.MANY, 5)):
            layer(torch.randn(shape))
    assert counted == [1, module.MANY - 1]


def test_an_export_contains_pytorchs_own_operator() -> None:
    with torch.no_grad():
        program = torch.export.export(Linear(5, 7).eval(), (torch.randn(3, 5),))
    assert "mkldnn" not in str(program.graph)


def written_step(layers: int, seed: int) -> tuple[TrainingModule, list[Example]]:
    """A network that writes, and examples whose lengths the seed decides."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(9):
        read, written = (rng.integers(3, 60, int(rng.integers(2, 9))) for _ in range(2))
        label = Label("lm", "written", np.arange(len(written)), rng.integers(3, 60, len(written)))
        examples.append(Example(read, labels={"main/lm": label}, written=written))
    network = tiny_network(1, num_decoder_layers=layers, with_pooler=False, match_outputs=0)
    return TrainingModule(network, {"main/lm": {}}), examples


@pytest.mark.parametrize("layers", [0, 2], ids=["the trunk writes", "a decoder writes"])
def test_low_precision_products_have_sizes_that_come_again(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is added for that changes neither the loss nor a gradient."""
    module_, examples = written_step(layers, 0)
    sizes: set[int] = set()
    pytorchs = nn.functional.linear

    def noted(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        sizes.add(len(values))
        return pytorchs(values, weight, bias)

    def gradients() -> dict[str, Tensor]:
        module_.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module_(collate(examples))["loss"]
        loss.backward()
        return {"loss": loss.detach()} | {n: p.grad for n, p in module_.named_parameters() if p.grad is not None}

    monkeypatch.setattr(nn.functional, "linear", noted)
    padded = gradients()
    assert {size for size in sizes if size % ROWS} <= {2}  # the vectors of text without image, and of nothing
    monkeypatch.setattr(module, "ROWS", 1)
    for name, value in gradients().items():
        torch.testing.assert_close(padded[name], value, atol=0.02 * float(value.abs().max()), rtol=0.02)


@pytest.mark.parametrize("layers", [0, 2], ids=["the trunk writes", "a decoder writes"])
def test_low_precision_training_is_near_the_exact_one(layers: int) -> None:
    module_, examples = written_step(layers, 1)
    exact = module_(collate(examples))["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = module_(collate(examples))["loss"]
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)


@given(st.integers(1, FEW + 3), st.integers(1, 70), st.integers(1, 70), st.booleans())
@settings(deadline=None, max_examples=40)
def test_packed_weights_give_the_same(rows: int, width: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(rows)
    layer, values = Linear(width, outputs, bias=bias), torch.randn(rows, width)
    wanted = nn.functional.linear(values.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode(), PackedWeights().used():
        for _ in range(2):  # packed, then kept
            torch.testing.assert_close(layer(values).double(), wanted.detach(), atol=1e-4, rtol=1e-5)


def test_a_changed_weight_is_packed_anew() -> None:
    layer, values = Linear(40, 30), torch.randn(3, 40)
    with torch.no_grad(), PackedWeights().used():
        before = layer(values)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(values) - layer.bias, 2 * (before - layer.bias), atol=1e-5, rtol=1e-5)
        layer.weight = nn.Parameter(torch.zeros(30, 40))
        assert torch.equal(layer(values), layer.bias.expand(3, 30))


def test_numbers_that_take_the_place_of_others_are_packed() -> None:
    """As a module's ``to`` gives them, which says nothing of a change."""
    layer, values = Linear(40, 30), torch.randn(3, 40)
    with torch.no_grad(), PackedWeights().used():
        layer(values)
        for number in range(20):
            layer.weight.data = torch.full((30, 40), float(number))
            wanted = nn.functional.linear(values, layer.weight, layer.bias)
            torch.testing.assert_close(layer(values), wanted, atol=1e-4, rtol=1e-5)


def test_what_is_packed_is_given_back_with_its_holder_and_not_before() -> None:
    layer, values, packed = Linear(40, 30), torch.randn(3, 40), PackedWeights()
    with torch.no_grad(), packed.used():
        layer(values)
        with PackedWeights().used():
            layer(values)
        assert module._packed.get() is packed
    assert module._packed.get() is None
    held, weight = weakref.ref(packed), weakref.ref(layer.weight)
    del packed, layer
    gc.collect()
    assert held() is None
    assert weight() is None


@pytest.mark.skipif(module._PACK is None, reason="this PyTorch is built without oneDNN")
def test_a_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def pack(weight: Tensor, rows: int) -> Tensor:
        asked.append(rows)
        return weight

    monkeypatch.setattr(module, "_PACK", pack)
    layer = Linear(40, 30)
    packed = PackedWeights()
    for _ in range(2):
        with torch.no_grad(), packed.used():
            for rows in (FEW + 1, 3, 5, FEW):
                layer(torch.randn(rows, 40))
            layer(torch.randn(2, 3, 40))
            with torch.enable_grad():
                layer(torch.randn(3, 40))
        layer(torch.randn(3, 40))
    assert asked == [FEW]
