"""Answers to questions: both losses against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import KnownRegions, step_of, tiny_network

from mmbert.data.packing import Example, Label
from mmbert.objectives import answer
from mmbert.objectives.base import LossTerm

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
