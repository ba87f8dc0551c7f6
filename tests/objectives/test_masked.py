"""Masked tokens, masked region classes and masked region features, each against a loop over its labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import FEATURES, KnownRegions, Picture, picture, states_alone, step_of, tiny_network
from torch import Tensor

from mmbert.data.packing import Example, Label
from mmbert.objectives import mlm, mvfr, mvrc

torch.set_num_threads(1)
MODEL = tiny_network(1)
RNG = np.random.default_rng(0)
PICTURES = [picture("a", 4, RNG), picture("b", 3, RNG)]


def negative_log_probability(logits: Tensor, index: int) -> float:
    numbers = logits.double().tolist()
    highest = max(numbers)
    return highest + math.log(sum(math.exp(n - highest) for n in numbers)) - numbers[index]


TEXTS = [
    Example(np.array([2, 7, 4, 9, 3]), labels={"m/mlm": Label("mlm", "token", np.array([2, 3]), np.array([8, 9]))}),
    Example(np.array([2, 5, 3])),
    Example(
        np.array([2, 4, 3]),
        image=PICTURES[0].ref,
        labels={"m/mlm": Label("mlm", "token", np.array([1]), np.array([59]))},
    ),
]


def test_mlm_is_the_cross_entropy_at_labelled_positions() -> None:
    images = KnownRegions(PICTURES)
    step = step_of(MODEL, TEXTS, images)
    term = mlm.compute(step, step.batch.targets["m/mlm"], mlm.Options(), "m/mlm")
    expected, right, count = 0.0, 0, 0
    for example in TEXTS:
        states = states_alone(MODEL, example, images)
        for label in example.labels.values():
            for place, wanted in zip(label.places, label.values, strict=True):
                logits = MODEL.token_logits(states[place : place + 1]).detach()[0]
                expected += negative_log_probability(logits, int(wanted))
                right += int(logits.argmax()) == wanted
                count += 1
    assert count == 3
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert term.count.item() == count
    assert [v.item() for v in term.metrics["accuracy"]] == [right, count]


def test_the_vocabulary_is_scored_at_labelled_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """At base size, logits at every position would cost as much as the whole encoder."""
    scored = []
    original = MODEL.token_head.transform

    def counted(states: Tensor) -> Tensor:
        scored.append(len(states))
        return original(states)

    monkeypatch.setattr(MODEL.token_head, "transform", counted)
    step = step_of(MODEL, TEXTS, KnownRegions(PICTURES))
    mlm.compute(step, step.batch.targets["m/mlm"], mlm.Options(), "m/mlm")
    assert scored == [3]


@pytest.mark.parametrize("train_table", [True, False])
def test_the_word_table_learns_from_the_decoder_only_where_it_may(train_table: bool) -> None:
    """The words that stand in no text here can get a gradient from the decoder alone."""
    model = tiny_network(1)
    step = step_of(model, TEXTS, KnownRegions(PICTURES))
    options = mlm.Options(train_table=train_table)
    mlm.compute(step, step.batch.targets["m/mlm"], options, "m/mlm").total.backward()
    gradient = model.trunk.embeddings.words.weight.grad
    read = sorted({int(i) for example in TEXTS if example.labels for i in example.token_ids})
    other = [i for i in range(len(gradient)) if i not in read]
    assert gradient[read].abs().amax(1).min() > 0, "words that are read learn through the encoder either way"
    assert (gradient[other].abs().amax(1).min() > 0) == train_table
    assert bool(gradient[other].any()) == train_table
    assert model.token_head.bias.grad.abs().min() > 0, "the decoder itself always learns"


def test_the_loss_is_the_same_whether_or_not_the_table_learns() -> None:
    step = step_of(MODEL, TEXTS, KnownRegions(PICTURES))
    totals = [
        mlm.compute(step, step.batch.targets["m/mlm"], mlm.Options(train_table=learns), "m/mlm").total.item()
        for learns in (True, False)
    ]
    assert totals[0] == totals[1]


def hidden(shown: Picture, masked: list[bool], places: list[int], objective: str) -> Example:
    label = {f"m/{objective}": Label(objective, "region", np.array(places))}
    return Example(np.array([2, 6, 3]), image=shown.ref, masked=np.array(masked), labels=label)


def regions(objective: str) -> list[Example]:
    """Labels are hidden regions and a region left visible."""
    return [
        hidden(PICTURES[0], [False, True, False, True], [1, 2, 3], objective),
        Example(np.array([2, 3])),
        hidden(PICTURES[1], [False, False, True], [2], objective),
    ]


def state_of(example: Example, images: KnownRegions, place: int) -> Tensor:
    start = len(example.token_ids) + place
    return states_alone(MODEL, example, images)[start : start + 1]


def test_mvrc_is_the_cross_entropy_to_the_detectors_distribution() -> None:
    images = KnownRegions(PICTURES)
    examples = regions("mvrc")
    step = step_of(MODEL, examples, images)
    term = mvrc.compute(step, step.batch.targets["m/mvrc"], mvrc.Options(), "m/mvrc")
    expected, right = 0.0, 0
    for example, shown in ((examples[0], PICTURES[0]), (examples[2], PICTURES[1])):
        for place in example.labels["m/mvrc"].places:
            logits = MODEL.region_logits(state_of(example, images, place)).detach()[0]
            wanted = shown.regions.classes[place]
            expected += sum(float(p) * negative_log_probability(logits, k) for k, p in enumerate(wanted))
            right += int(logits.argmax()) == int(wanted.argmax())
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert [v.item() for v in (term.count, *term.metrics["accuracy"])] == [4, right, 4]


@pytest.mark.parametrize(("total", "counts"), [(1.0, True), (1.09, True), (0.91, True), (1.11, False), (0.0, False)])
def test_mvrc_counts_regions_whose_distribution_sums_to_one(total: float, counts: bool) -> None:
    classes = PICTURES[1].regions.classes.copy()
    classes[2] *= total
    images = KnownRegions([Picture("b", replace(PICTURES[1].regions, classes=classes))])
    step = step_of(MODEL, [hidden(PICTURES[1], [False, False, True], [1, 2], "mvrc")], images)
    term = mvrc.compute(step, step.batch.targets["m/mvrc"], mvrc.Options(), "m/mvrc")
    assert term.count.item() == (2 if counts else 1)
    only = step_of(MODEL, [hidden(PICTURES[1], [False, False, True], [1], "mvrc")], images)
    one = mvrc.compute(only, only.batch.targets["m/mvrc"], mvrc.Options(), "m/mvrc").total.item()
    assert (term.total.item() > one + 0.1) == counts
    if not counts:
        assert term.total.item() == pytest.approx(one, rel=1e-5)


def test_mvrc_without_classes_says_what_to_do() -> None:
    images = KnownRegions([Picture("b", replace(PICTURES[1].regions, classes=None))])
    step = step_of(MODEL, [hidden(PICTURES[1], [False, False, True], [2], "mvrc")], images)
    with pytest.raises(ValueError, match="choose the objective mvfr"):
        mvrc.compute(step, step.batch.targets["m/mvrc"], mvrc.Options(), "m/mvrc")


def test_mvfr_is_the_squared_error_to_the_standardised_feature() -> None:
    images = KnownRegions(PICTURES)
    examples = regions("mvfr")
    step = step_of(MODEL, examples, images)
    term = mvfr.compute(step, step.batch.targets["m/mvfr"], mvfr.Options(), "m/mvfr")
    expected = 0.0
    for example, shown in ((examples[0], PICTURES[0]), (examples[2], PICTURES[1])):
        for place in example.labels["m/mvfr"].places:
            feature = shown.regions.features[place].astype(np.float64)
            wanted = (feature - feature.mean()) / math.sqrt(feature.var() + 1e-5)
            predicted = MODEL.region_features(state_of(example, images, place)).detach()[0].double().numpy()
            expected += ((predicted - wanted) ** 2).sum() / FEATURES
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert term.count.item() == 4


def test_features_are_labels_and_get_no_gradient_as_such() -> None:
    """Else a trainable encoder would learn to make every feature the same."""
    step = step_of(MODEL, [hidden(PICTURES[1], [False, True, True], [1, 2], "mvfr")], KnownRegions(PICTURES))
    features = step.output.regions.features.clone().requires_grad_()
    step.output.regions = replace(step.output.regions, features=features)
    mvfr.compute(step, step.batch.targets["m/mvfr"], mvfr.Options(), "m/mvfr").total.backward()
    assert features.grad is None


@pytest.mark.parametrize("module", [mlm, mvfr, mvrc])
def test_options_are_checked(module) -> None:  # type: ignore[no-untyped-def]
    assert module.Options().weight == 1.0
    with pytest.raises(ValidationError):
        module.Options(wieght=2)
