"""Multiple choice and region classes: losses against sums written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import FEATURES, KnownRegions, picture, step_of, tiny_network

from mmbert.data.packing import Example, Label
from mmbert.model.task_models import read_head, read_sequences
from mmbert.objectives import choice, feature_class, region_class
from mmbert.training.module import TrainingModule

torch.set_num_threads(1)
RNG = np.random.default_rng(0)
PICTURES = [picture(f"p{i}", 3, RNG) for i in range(2)]
HEADS = {
    "choice": {"kind": "linear", "outputs": 1},
    "region_class": {"kind": "transform", "outputs": 5},
    "feature_class": {"kind": "linear", "outputs": 5, "input_size": FEATURES},
}
MODEL = tiny_network(1, heads=HEADS)
HERE = np.zeros(1, dtype=np.int64)
# question, picture, right: the choices of two questions, one of which has three
CHOICES = [(70, 0, 0), (70, 0, 1), (30, 1, 0), (30, 1, 0), (30, 1, 1), (70, 0, 0)]


def examples() -> list[Example]:
    found = []
    for number, (question, shown, right) in enumerate(CHOICES):
        labels = {
            "a/choice": Label("choice", "sequence", HERE, np.array([right]), {"question": np.array([question])}),
            "a/region_class": Label("region_class", "region", np.array([0, 2]), np.array([0, 1 + number % 4])),
        }
        if number in (0, 2):
            labels["a/feature_class"] = Label("feature_class", "feature", np.array([1, 2]), np.array([3, number]))
        found.append(Example(np.array([2, 5 + number, 3]), image=PICTURES[shown].ref, labels=labels))
    return found


STEP = step_of(MODEL, examples(), KnownRegions(PICTURES))
LOGITS = MODEL.head_logits("choice", STEP.output.pooled)[:, 0].tolist()


def test_one_of_the_choices_of_a_question_is_right() -> None:
    term = choice.compute(STEP, STEP.batch.targets["a/choice"], choice.Options(), "a/choice")
    wanted, right = 0.0, 0
    for question in (30, 70):
        own = [(x, r) for x, (q, _, r) in zip(LOGITS, CHOICES, strict=True) if q == question]
        wanted += math.log(sum(math.exp(x) for x, _ in own)) - sum(x for x, r in own if r)
        right += max(own)[1]
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert [x.item() for x in (term.count, *term.metrics["accuracy"])] == [2, right, 2]


def test_each_choice_may_be_right_or_wrong_by_itself() -> None:
    term = choice.compute(STEP, STEP.batch.targets["a/choice"], choice.Options(sigmoid=True), "a/choice")
    wanted = sum(math.log(1 + math.exp(-x if r else x)) for x, (_, _, r) in zip(LOGITS, CHOICES, strict=True))
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert term.count.item() == 6
    assert term.metrics["accuracy"][1].item() == 2, "questions, not choices"


def test_a_question_may_have_fewer_choices_than_another() -> None:
    target = STEP.batch.targets["a/choice"]
    kept = torch.tensor([0, 1, 2, 3, 4])
    few = type(target)(
        "choice", target.positions[kept], target.labels[kept], {"question": target.extra["question"][kept]}
    )
    term = choice.compute(STEP, few, choice.Options(), "a/choice")
    wanted = sum(
        math.log(sum(math.exp(LOGITS[n]) for n in own)) - LOGITS[right] for own, right in (([0, 1], 1), ([2, 3, 4], 4))
    )
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)


def test_region_classes_are_told_from_final_states() -> None:
    target = STEP.batch.targets["a/region_class"]
    term = region_class.compute(STEP, target, region_class.Options(), "a/region_class")
    wanted = 0.0
    for number, start in enumerate(STEP.batch.starts.tolist()):
        for place, label in ((0, 0), (2, 1 + number % 4)):
            state = STEP.output.last_hidden_state[start + 3 + place]
            wanted -= MODEL.heads["region_class"](state[None])[0].log_softmax(0)[label].item()
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert term.count.item() == 12


def test_feature_classes_are_told_from_features_alone() -> None:
    target = STEP.batch.targets["a/feature_class"]
    term = feature_class.compute(STEP, target, feature_class.Options(), "a/feature_class")
    head, wanted = MODEL.heads["feature_class"].predictor, 0.0
    for shown, labels in ((0, (3, 0)), (1, (3, 2))):
        for region, label in zip((1, 2), labels, strict=True):
            logits = head.weight @ torch.from_numpy(PICTURES[shown].regions.features[region]) + head.bias
            wanted -= logits.log_softmax(0)[label].item()
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert term.count.item() == 4


def test_a_training_step_sums_them_by_their_weights() -> None:
    options = {"a/choice": {"sigmoid": True, "weight": 2.0}, "a/region_class": {"weight": 0.5}, "a/feature_class": {}}
    result = TrainingModule(MODEL, options)(STEP.batch)
    mean = {name: float(result["terms"][name][0] / result["terms"][name][1]) for name in options}
    wanted = 2 * mean["a/choice"] + 0.5 * mean["a/region_class"] + mean["a/feature_class"]
    assert result["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_a_head_that_looks_around_is_asked_about_the_first_state() -> None:
    """The loss of a pointing head is that of its logits at the sequences' first tokens, whatever else is computed."""
    model = tiny_network(4, heads=HEADS | {"choice": {"kind": "pointing", "outputs": 1}})
    step = step_of(model, examples(), KnownRegions(PICTURES))
    term = choice.compute(step, step.batch.targets["a/choice"], choice.Options(), "a/choice")
    with torch.no_grad():
        logits = read_head(model, "choice", step.batch, step.batch.starts).logits
        whole = read_sequences(model, "choice", step.batch).logits
    assert logits is not None
    torch.testing.assert_close(whole, logits)
    table = [
        [x for x, (q, _, _) in zip(logits[:, 0].tolist(), CHOICES, strict=True) if q == asked] for asked in (30, 70)
    ]
    rights = [[r for q, _, r in CHOICES if q == asked].index(1) for asked in (30, 70)]
    wanted = sum(math.log(sum(map(math.exp, row))) - row[right] for row, right in zip(table, rights, strict=True))
    assert term.total.item() == pytest.approx(wanted, rel=1e-4)
    module = TrainingModule(model, {"a/choice": {}})
    assert module(step.batch)["loss"].item() == pytest.approx(wanted / 2, rel=1e-4)
