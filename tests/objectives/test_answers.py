"""Answers to questions: both losses against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import KnownRegions, picture, step_of, tiny_network

from mmbert.data.packing import Example, Label
from mmbert.objectives import answer
from mmbert.objectives.base import LossTerm
from mmbert.training.module import TrainingModule

torch.set_num_threads(1)
SCORES = np.array([[1.0, 0.6, 0.0, 0.0], [0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)


def loss(**options: object) -> tuple[LossTerm, np.ndarray]:
    """The term of three questions, the last without a right answer, and their logits [3, 4] as doubles."""
    model = tiny_network(1, heads={"answer": {"kind": "linear", "outputs": 4, "labels": list("abcd"), **options}})
    place = np.array([1])
    examples = [
        Example(np.array([2, 5 + n, 3]), labels={"q/answer": Label("answer", "token", place, row[None])})
        for n, row in enumerate(SCORES)
    ]
    step = step_of(model, examples, KnownRegions([]))
    target = step.batch.targets["q/answer"]
    logits = model.head_logits("answer", step.states(target.positions)).detach().double().numpy()
    return answer.compute(step, target, answer.Options(), "q/answer"), logits


def test_each_answer_is_right_or_wrong_by_itself() -> None:
    term, x = loss()
    wanted = (np.log1p(np.exp(-x)) * SCORES + np.log1p(np.exp(x)) * (1 - SCORES)).sum()
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert term.count.item() == 3


def test_exclusive_answers_are_learned_against_each_other() -> None:
    term, x = loss(exclusive=True)
    likely = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    wanted = -(np.log(likely[0, 0]) * 1.0 + np.log(likely[0, 1]) * 0.6) / 1.6 - np.log(likely[1, 2])
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert torch.isfinite(term.total)


def test_a_head_that_looks_around_reads_just_the_places_it_says() -> None:
    """The loss over the states that the training module keeps is the one over all of them."""
    pictures = [picture(name, count, np.random.default_rng(count)) for name, count in (("a", 4), ("b", 2))]
    heads = {"answer": {"kind": "pointing", "outputs": 4, "labels": list("abcd"), "exclusive": True}}
    model = tiny_network(1, heads=heads)
    examples = [
        Example(
            np.array([2, 5 + n, 7, 3]),
            image=pictures[n].ref if n < 2 else None,
            labels={"q/answer": Label("answer", "token", np.array([2]), SCORES[n][None])},
        )
        for n in range(2)
    ]
    step = step_of(model, examples, KnownRegions(pictures))
    term = answer.compute(step, step.batch.targets["q/answer"], answer.Options(), "q/answer")
    module = TrainingModule(model, {"q/answer": {}})
    kept = module._positions(step.batch)
    assert kept is not None
    assert 0 < len(kept) < step.batch.num_positions
    assert module(step.batch)["loss"].item() == pytest.approx((term.total / 2).item(), rel=1e-5)
