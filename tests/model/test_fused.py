"""One kernel for all sequences of a batch: against the attention by groups, and on a GPU the kernel itself.

Where there is no GPU a loop over the sequences, written to the kernel's contract, stands in for it: then what is tested
is which positions, bounds and masks it is given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_examples, tiny_network
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmbert.data.packing import collate
from mmbert.model import fused
from mmbert.model.attention import PackedSelfAttention, binned_attention, grouped_attention, plan_attention
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.modeling import MMBertForPreTraining

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FORMS: dict[str, dict[str, Any]] = {
    "the trunk writes": {},
    "a decoder writes": {"num_decoder_layers": 2},
    "a decoder with its own tables": {"num_decoder_layers": 2, "decoder_own_embeddings": True},
}


def by_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: None,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    rate: float,
    mask: int,
    compute_log_sumexp: bool = False,
) -> tuple[Tensor]:
    """What the kernel's arguments mean, sequence by sequence."""
    assert query_starts.dtype == key_starts.dtype == torch.int32
    outputs = []
    starts, ends = query_starts.tolist(), key_starts.tolist()
    for i in range(len(starts) - 1):
        q, k, v = (
            rows[0, bounds[i] : bounds[i + 1]].transpose(0, 1).double()
            for rows, bounds in ((query, starts), (key, ends), (value, ends))
        )
        n, m = q.shape[1], k.shape[1]
        assert n <= most_queries
        assert m <= most_keys
        seen = torch.ones(n, m, dtype=torch.bool)
        assert not rate
        if mask == fused.UP_TO_LAST:
            seen = torch.arange(m)[None] <= torch.arange(n)[:, None] + m - n
        outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1))
    assert starts[-1] == query.shape[1]
    assert ends[-1] == key.shape[1]
    return (torch.cat(outputs)[None].to(query.dtype),)


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every batch goes through the stand-in."""
    monkeypatch.setattr(fused, "EXACT", by_loop)
    monkeypatch.setattr(fused, "fits", lambda values, head_size, rate: True)
    return monkeypatch


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_self_attention_is_that_by_groups(lengths: list[int]) -> None:
    torch.manual_seed(0)
    attention = PackedSelfAttention(16, 2, 0.0)
    hidden = torch.randn(sum(lengths), 16)
    plan = plan_attention(lengths, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32))
    wanted = attention(hidden, plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "EXACT", by_loop)
        patch.setattr(fused, "fits", lambda values, head_size, rate: True)
        torch.testing.assert_close(attention(hidden, plan), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_written_text_sees_what_it_sees_by_groups(form: str, seed: int, one_kernel: pytest.MonkeyPatch) -> None:
    model = MMBertForConditionalGeneration.sharing(tiny_network(seed, **FORMS[form]))
    batch, rows = written_batch(seed)
    found = logits_and_gradients(model, batch)
    one_kernel.undo()
    for ours, wanted in zip(found, logits_and_gradients(model, batch), strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-4)
    assert len(found[0]) == rows


def test_a_whole_model_is_the_same(one_kernel: pytest.MonkeyPatch) -> None:
    model, batch = tiny_network(), collate(*random_examples(7, 9))
    with torch.no_grad():
        found = model(batch).last_hidden_state
        one_kernel.undo()
        torch.testing.assert_close(found, model(batch).last_hidden_state, atol=1e-5, rtol=0)


def written_batch(seed: int) -> tuple[Any, int]:
    """Sequences with text behind them, and its number of positions."""
    examples, images = random_examples(seed, 8)
    rng = np.random.default_rng(seed)
    made = [
        replace(e, written=rng.integers(3, 60, int(rng.integers(1, 7))), masked=None, region_numbers=None, ties=0)
        for e in examples
    ]
    return collate(made, images), sum(len(e.written) for e in made)  # type: ignore[arg-type]


def logits_and_gradients(model: MMBertForConditionalGeneration, batch: Any) -> list[Tensor]:
    """[T, K] logits of the written positions and the gradient of their squares by every weight."""
    logits = model(batch).logits
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(logits.square().mean(), weights, allow_unused=True)
    return [logits.detach(), *(g for g in found if g is not None)]


def gpu_case(dtype: torch.dtype, sequences: int = 12) -> tuple[Tensor, Any, Tensor]:
    torch.manual_seed(0)
    lengths = np.random.default_rng(0).integers(1, 90, sequences).tolist()
    lengths.sort()
    plan = plan_attention(lengths, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda"))
    qkv = torch.randn(sum(lengths), 3 * 4 * 32, device="cuda", dtype=dtype, requires_grad=True)
    return qkv, plan, torch.randn(sum(lengths), 4 * 32, device="cuda", dtype=torch.double)


def through_the_kernel(qkv: Tensor, plan: Any) -> Tensor:
    bounds = fused.Bounds(plan.cu_seqlens, plan.longest)
    query, key, value = qkv.view(-1, 3, 4, 32).unbind(1)
    return fused.fused_packed_attention(query, key, value, bounds, bounds).reshape(len(qkv), -1)


@needs_gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_the_kernel_gives_states_and_gradients_of_double_precision(dtype: torch.dtype, error: float) -> None:
    qkv, plan, weights = gpu_case(dtype)
    assert fused.fits(qkv, 32)
    found = through_the_kernel(qkv, plan)
    wanted = grouped_attention(qkv.double(), plan, 4)
    for ours, exact in (
        (found, wanted),
        *zip(*(torch.autograd.grad((x.double() * weights).sum(), qkv) for x in (found, wanted)), strict=True),
    ):
        assert float((ours.double() - exact).norm() / exact.double().norm()) < error


@needs_gpu
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_leaves_the_rest_of_the_weights_and_its_gradient_is_theirs(causal: bool) -> None:
    """Values that are unit vectors show which weights were dropped; everything else follows in double precision."""
    torch.manual_seed(0)
    lengths = [1, 3, 17, 17, 40, 64, 64]
    size, heads, rate = 64, 4, 0.25
    bounds = fused.Bounds.of(lengths, torch.device("cuda"))
    qkv = torch.randn(sum(lengths), 3, heads, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    query, key, value = qkv.unbind(1)
    assert fused.fits(query, size, rate)

    def attend(values: Tensor) -> Tensor:
        torch.manual_seed(1)
        return fused.fused_packed_attention(query, key, values, bounds, bounds, causal=causal, rate=rate)

    units = torch.cat([torch.eye(size, device="cuda")[:n] for n in lengths]).to(torch.bfloat16)
    with torch.no_grad():
        kept = attend(units[:, None].expand(-1, heads, -1).contiguous()) != 0
    found = attend(value)
    outputs = []
    for rows, of_sequence in zip(qkv.double().split(lengths), kept.split(lengths), strict=True):
        n = len(rows)
        q, k, v = rows.permute(1, 2, 0, 3).unbind(0)
        scores = q @ k.transpose(1, 2) * size**-0.5
        seen = torch.ones(n, n, device="cuda").tril().bool() if causal else torch.ones(n, n, device="cuda").bool()
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        stays = of_sequence.transpose(0, 1)[:, :, :n]
        outputs.append((weights * stays / (1 - rate) @ v).transpose(0, 1))
    exact = torch.cat(outputs)
    share = float((exact.detach() != 0).any(-1).float().mean())
    assert share > 0.5
    dropped = 1 - float(kept.sum() / (sum(n * (n + 1) / 2 if causal else n * n for n in lengths) * heads))
    assert abs(dropped - rate) < 0.02
    towards = torch.randn_like(exact)
    gradients = [torch.autograd.grad((x.double() * towards).sum(), qkv)[0].double() for x in (found, exact)]
    assert float((found.double() - exact).norm() / exact.norm()) < 1e-2
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 2e-2


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_bins_give_what_groups_give(lengths: list[int]) -> None:
    torch.manual_seed(0)
    lengths = sorted(lengths)
    plan = plan_attention(lengths, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32))
    qkv = torch.randn(sum(lengths), 3 * 16, requires_grad=True)
    ours, wanted = binned_attention(qkv, plan, 2), grouped_attention(qkv, plan, 2)
    torch.testing.assert_close(ours, wanted)
    gradients = [torch.autograd.grad(x.square().sum(), qkv)[0] for x in (ours, wanted)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_dropout_in_bins_keeps_the_mean() -> None:
    torch.manual_seed(0)
    plan = plan_attention([3, 9, 10], torch.tensor([0, 3, 12, 22], dtype=torch.int32))
    qkv = torch.randn(22, 3 * 16)
    exact = binned_attention(qkv, plan, 2)
    some = torch.stack([binned_attention(qkv, plan, 2, 0.3) for _ in range(500)])
    assert float((some[0] - exact).norm() / exact.norm()) > 0.1
    assert float((some.mean(0) - exact).norm() / exact.norm()) < 0.06


@needs_gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_writes_and_reads_as_a_cpu_does(form: str) -> None:
    model = MMBertForConditionalGeneration.sharing(tiny_network(3, **FORMS[form]))
    batch, _ = written_batch(3)
    wanted = logits_and_gradients(model, batch)
    found = logits_and_gradients(model.to("cuda"), batch.to("cuda"))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        states = MMBertForPreTraining.forward(model, batch.to("cuda")).last_hidden_state
    assert bool(torch.isfinite(states).all())
