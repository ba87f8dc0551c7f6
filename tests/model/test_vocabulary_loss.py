"""The loss over the vocabulary, in chunks, against PyTorch's own over all rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.vocabulary_loss import vocabulary_loss

torch.set_num_threads(1)


def problem(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in ((7, 5), (11, 5), (11,))]
    return [*values, torch.randint(11, (7,), generator=generator), torch.rand(7, generator=generator, dtype=dtype)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100, None])
@pytest.mark.parametrize("train_table", [True, False])
def test_it_is_the_plain_loss_with_its_gradients(rows: int | None, train_table: bool, smoothing: float) -> None:
    found = []
    for chunked in (True, False):
        states, table, bias, labels, weights = problem()
        used = table if train_table else table.detach()
        if chunked:
            total, right, plain = vocabulary_loss(states, used, bias, labels, weights, rows, smoothing)
        else:
            logits = F.linear(states, used, bias)
            losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            total, plain = (losses * weights).sum(), (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
            right = (logits.argmax(1) == labels).sum()
        (3 * total).backward()
        found.append((total.detach(), plain.detach(), right.double(), states.grad, bias.grad, table.grad))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_no_rows_are_no_loss() -> None:
    states, table, bias, labels, weights = problem()
    total, right, _ = vocabulary_loss(states[:0], table, bias, labels[:0], weights[:0])
    total.backward()
    assert total.item() == right.item() == 0
    assert not table.grad.any()


def test_without_gradients_the_loss_is_the_same() -> None:
    arguments = problem()
    with torch.no_grad():
        alone = vocabulary_loss(*arguments, rows=3)
    assert torch.equal(alone[0], vocabulary_loss(*arguments, rows=3)[0].detach())


def test_in_half_precision_it_is_about_the_same() -> None:
    arguments = problem(torch.float32)
    exact = vocabulary_loss(*arguments)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = vocabulary_loss(*arguments)[0]
    assert rough.dtype == torch.float32
    rough.backward()
    assert arguments[1].grad.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)


def test_the_logits_of_all_rows_are_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *a: sizes.append(linear(*a).shape[0]) or linear(*a))
    vocabulary_loss(*problem(), rows=2)[0].backward()
    assert sizes == [2, 2, 2, 1]


def test_rows_without_weight_count_for_nothing() -> None:
    states, table, bias, labels, weights = problem()
    more = [torch.cat([states, states[:3]]), table, bias, torch.cat([labels, labels[:3]])]
    found = vocabulary_loss(*more, torch.cat([weights, weights.new_zeros(3)]), smoothing=0.1)
    for ours, theirs in zip(found, vocabulary_loss(states, table, bias, labels, weights, smoothing=0.1), strict=True):
        torch.testing.assert_close(ours, theirs)
