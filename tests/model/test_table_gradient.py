"""One gradient of a table that is looked up and predicted from, against the sum that autograd makes by itself."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import accumulate

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mmbert.model.table_gradient import WordTable, one_gradient_per_table
from mmbert.model.vocabulary_loss import vocabulary_loss

torch.set_num_threads(1)
WORDS, SIZE, PADDING = 13, 6, 0
IDS = st.lists(st.integers(0, WORDS - 1), max_size=9)
LOSSES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.1]), st.floats(0.5, 2.0)), max_size=3)


def table(dtype: torch.dtype = torch.float64) -> WordTable:
    torch.manual_seed(0)
    return WordTable(WORDS, SIZE, padding_idx=PADDING, dtype=dtype)


def objective(
    words: WordTable, looked_up: list[list[int]], losses: list[tuple[int, float, float]], *, ours: bool
) -> Tensor:
    """Look-ups, of which some are the states that the losses predict from; plain PyTorch or ours."""
    generator = torch.Generator().manual_seed(1)
    look_up = words if ours else lambda ids: F.embedding(ids, words.weight, PADDING)
    total = torch.zeros((), dtype=words.weight.dtype)
    for ids in looked_up:
        total = total + look_up(torch.tensor(ids, dtype=torch.long)).sin().sum()
    for count, smoothing, factor in losses:
        read, labels = torch.randint(WORDS, (2, count), generator=generator)
        states, bias = look_up(read).cos(), torch.linspace(0, 1, WORDS, dtype=words.weight.dtype)
        weights = torch.rand(count, generator=generator, dtype=words.weight.dtype)
        if ours:
            loss = vocabulary_loss(states, words.weight, bias, labels, weights, rows=4, smoothing=smoothing)[0]
        else:
            logits = states @ words.weight.T + bias
            loss = (F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing) * weights).sum()
        total = total + factor * loss
    return total


@settings(deadline=None)
@given(st.lists(IDS, max_size=3), LOSSES, st.integers(1, 2))
def test_it_is_the_sum_of_what_each_use_adds(
    looked_up: list[list[int]], losses: list[tuple[int, float, float]], steps: int
) -> None:
    """With no row, few rows or more rows than the table is wide, and added to what an earlier batch left."""
    found = []
    for ours in (True, False):
        words = table()
        for _ in range(steps):
            with one_gradient_per_table():
                total = objective(words, looked_up, losses, ours=ours)
            if total.requires_grad:
                total.backward()
        found.append(words.weight.grad)
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_a_table_used_by_two_passes_at_once_has_both() -> None:
    """Two forward passes before their backward passes, in the other order."""
    words, alone = table(), table()
    with one_gradient_per_table():
        first = objective(words, [[1, 2, 2]], [(3, 0.0, 1.0)], ours=True)
    with one_gradient_per_table():
        second = objective(words, [[4]], [(8, 0.0, 2.0)], ours=True)
    second.backward()
    first.backward()
    objective(alone, [[1, 2, 2]], [(3, 0.0, 1.0)], ours=False).backward()
    objective(alone, [[4]], [(8, 0.0, 2.0)], ours=False).backward()
    torch.testing.assert_close(words.weight.grad, alone.weight.grad)


def test_a_frozen_table_has_none() -> None:
    words = table()
    words.weight.requires_grad_(False)
    states = torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True)
    with one_gradient_per_table():
        total = vocabulary_loss(
            states + words(torch.tensor([1, 2, 3])),
            words.weight,
            torch.zeros(WORDS, dtype=torch.float64),
            torch.tensor([1, 2, 3]),
            torch.ones(3, dtype=torch.float64),
        )[0]
    total.backward()
    assert states.grad is not None and words.weight.grad is None


def most_held(shares: bool) -> int:
    """Bytes that three losses and their look-ups hold at most, of a table of 2.56 MB."""
    words, bias, labels = WordTable(20_000, 32), torch.zeros(20_000), torch.arange(4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        with one_gradient_per_table() if shares else nullcontext():
            losses = [vocabulary_loss(words(labels), words.weight, bias, labels, torch.ones(4))[0] for _ in range(3)]
        torch.stack(losses).sum().backward()
    assert words.weight.grad is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def test_it_is_there_once_only() -> None:
    assert most_held(shares=True) < 2 * 2.56e6
    assert most_held(shares=False) > 2 * 2.56e6  # the measure sees what autograd does by itself
