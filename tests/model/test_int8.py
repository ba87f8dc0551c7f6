"""Products in 8 bits: the integers of an independent quantisation, close to fp32, and only where they may be."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_examples, tiny_config
from torch import Tensor, nn

from mmbert.data.packing import Example, collate
from mmbert.errors import UsageError
from mmbert.model import int8 as module
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.int8 import COARSE, Int8Weight, int8_is_faster, largest_weight, quantised
from mmbert.model.kept import Kept
from mmbert.model.linear import Linear
from mmbert.model.modeling import MMBertForPreTraining

torch.set_num_threads(1)
needs_int8 = pytest.mark.skipif(not largest_weight(), reason="this PyTorch has no products in 8 bits")


def in_8_bits(layer: Linear) -> Linear:
    layer.int8 = Kept(quantised)
    return layer


def usual_network(**changes: Any) -> MMBertForPreTraining:
    """As it is initialised, two layers of 64: 8 bits are fine enough for weights without outliers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "initializer_range": 0.1}
    return MMBertForPreTraining(tiny_config(**(sizes | changes))).eval()


@needs_int8
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9), width=st.integers(1, 70), outputs=st.integers(1, 40), bias=st.booleans(),
    size=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_sums_are_those_of_integers(rows: int, width: int, outputs: int, bias: bool, size: float, seed: int) -> None:
    """Against integers in numpy, quantised row by row."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((rows, width)) * size).astype(np.float32)
    weight = rng.standard_normal((outputs, width)).astype(np.float32)
    added = rng.standard_normal(outputs).astype(np.float32) if bias else np.zeros(outputs, np.float32)
    most = np.float32(largest_weight())
    value_step = np.abs(values).max(1, keepdims=True) / np.float32(127)
    weight_step = np.abs(weight).max(1, keepdims=True) / most
    whole = np.rint(values / value_step).astype(np.int64) @ np.rint(weight / weight_step).astype(np.int64).T
    wanted = whole * value_step.astype(np.float64) * weight_step.T + added
    with torch.inference_mode():
        found = Int8Weight(torch.from_numpy(weight)).product(
            torch.from_numpy(values), torch.from_numpy(added) if bias else None
        )
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))
    # No further from the exact product than half a step of each factor can bring it.
    exact = values.astype(np.float64) @ weight.T.astype(np.float64) + added
    bound = (
        value_step / 2 * np.abs(weight).sum(1) + weight_step.T / 2 * (np.abs(values) + value_step / 2).sum(1)[:, None]
    )
    assert (np.abs(found.numpy() - exact) <= bound * 1.001 + 1e-5 * np.abs(exact).max()).all()


@needs_int8
def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    copy_, values = Int8Weight(torch.randn(48, 96)), torch.randn(33, 96) * torch.logspace(-3, 3, 33)[:, None]
    bias = torch.randn(48)
    with torch.inference_mode():
        together = copy_.product(values, bias)
        for number, row in enumerate(values):
            assert torch.equal(copy_.product(row[None], bias)[0], together[number])


@needs_int8
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 5), (5,), (0, 5), (2, 0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_are_pytorchs(shape: tuple[int, ...], bias: bool) -> None:
    layer = in_8_bits(Linear(5, 7, bias=bias))
    values = torch.randn(shape)
    with torch.inference_mode():
        found = layer(values)
        assert found.shape == (*shape[:-1], 7)
        torch.testing.assert_close(found, nn.functional.linear(values, layer.weight, layer.bias), atol=0.1, rtol=0.1)


@needs_int8
def test_strided_values() -> None:
    layer, wide = in_8_bits(Linear(8, 7)), torch.randn(4, 16)
    with torch.inference_mode():
        for values in (wide[:, ::2], wide[:, :8], torch.randn(8, 4).T, torch.randn(1, 8).expand(6, 8)):
            assert torch.equal(layer(values), layer(values.contiguous()))


@needs_int8
def test_rows_of_nothing_and_of_no_numbers() -> None:
    layer = in_8_bits(Linear(8, 7))
    values = torch.ones(4, 8)
    values[0], values[1, 3], values[2, 3] = 0, float("nan"), float("inf")
    with torch.inference_mode():
        found = layer(values)
    assert torch.equal(found[0], layer.bias)
    assert found[1].isnan().all() and not found[2].isfinite().any() and found[3].isfinite().all()


@needs_int8
def test_a_weight_that_changes_is_quantised_anew() -> None:
    layer, values = in_8_bits(Linear(8, 7)), torch.randn(3, 8)
    with torch.no_grad():
        before = layer(values)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(values) - layer.bias, 2 * (before - layer.bias))
        layer.weight.data = -layer.weight.data.clone()
        torch.testing.assert_close(layer(values) - layer.bias, -2 * (before - layer.bias))


@needs_int8
def test_a_weight_with_outliers_stays_as_it_is() -> None:
    """A number a hundred times larger than the others takes their bits."""
    torch.manual_seed(0)
    layer, values = in_8_bits(Linear(96, 7)), torch.randn(3, 96)
    with torch.inference_mode():
        assert Int8Weight(layer.weight).error < COARSE / 2
        assert not torch.equal(layer(values), nn.functional.linear(values, layer.weight, layer.bias))
    with torch.no_grad():
        rest = Linear(96, 7)
        rest.weight.copy_(torch.randn(7, 96) * 1e-2)
        rest.weight[:, 0] = 1.0
        assert quantised(rest.weight) is None
        rest = in_8_bits(rest)
        torch.testing.assert_close(rest(values), nn.functional.linear(values, rest.weight, rest.bias))
        rest.weight[0, 0] = float("nan")
        assert quantised(rest.weight) is None


@needs_int8
def test_only_for_inference_on_a_cpu_in_fp32() -> None:
    layer, values = in_8_bits(Linear(8, 7)), torch.randn(3, 8)
    exact = nn.functional.linear(values, layer.weight, layer.bias)
    assert torch.equal(layer(values), exact)
    layer(values).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert not torch.equal(layer(values), exact)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(values).dtype == torch.bfloat16
        assert layer.double()(values.double()).dtype == torch.float64


def _network_outputs(model: MMBertForPreTraining, seed: int = 0) -> tuple[Tensor, Tensor]:
    batch = collate(*random_examples(seed, 12))
    with torch.inference_mode():
        states = model(batch).last_hidden_state
        assert states is not None
        return states, model.token_logits(states[:5])


@needs_int8
def test_a_network_in_8_bits_is_close_and_saves_the_same() -> None:
    model = usual_network()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states, logits = _network_outputs(model)
    model.use_int8()
    states_8, logits_8 = _network_outputs(model)
    assert not torch.equal(states, states_8) and not torch.equal(logits, logits_8)
    assert float(torch.cosine_similarity(states, states_8).min()) > 0.999
    torch.testing.assert_close(logits_8, logits, atol=0.05 * float(logits.std()), rtol=0.05)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(_network_outputs(other)[0], states_8)


@needs_int8
@pytest.mark.parametrize("decoder", [0, 2])
def test_writing_in_8_bits(decoder: int) -> None:
    """What is written with the cache is what all positions at once give, alone or beside other texts; a beam of 1 is
    greedy."""
    model = MMBertForConditionalGeneration.sharing(usual_network(num_decoder_layers=decoder))
    model.use_int8()
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(3, 60, 7), written=np.array([2])) for _ in range(3)]
    options: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate_text(collate(examples), **options)
    for number, example in enumerate(examples):
        alone = model.generate_text(collate([example]), num_beams=1, **options)
        assert torch.equal(alone[0], together[number])
        whole = collate([Example(example.token_ids, written=alone[0, :-1].numpy())])
        with torch.inference_mode():
            assert torch.equal(model(whole).logits.argmax(-1), alone[0, 1:])


def test_a_processor_that_adds_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights have 7 bits then: two products of those fit."""

    def saturating(unsigned: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        weight = weights[-1].double()
        pairs = (unsigned.double()[:, None] * weight[None]).unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(-1) - 128 * weight.sum(-1)).float() * scales

    weights: list[Tensor] = []

    def pack(weight: Tensor, _: Any) -> Tensor:
        weights.append(weight)
        return weight

    monkeypatch.setattr(module, "_PRODUCT", object())  # also where there is none
    monkeypatch.setattr(module, "_multiply", saturating)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", pack, raising=False)
    largest_weight.cache_clear()
    try:
        assert largest_weight() == 63
        assert int(Int8Weight(torch.randn(4, 8)).scales.numel()) == 4 and int(weights[-1].abs().max()) == 63
    finally:
        largest_weight.cache_clear()


def test_a_build_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PRODUCT", None)
    largest_weight.cache_clear()
    int8_is_faster.cache_clear()
    try:
        assert largest_weight() == 0 and not int8_is_faster()
        with pytest.raises(UsageError, match="no products in 8 bits"):
            usual_network().use_int8()
    finally:
        largest_weight.cache_clear()
        int8_is_faster.cache_clear()
