"""The schedule and the parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_network

from mmbert.training.module import TrainingModule
from mmbert.training.optimizers import parameter_groups, schedule
from mmbert.training.recipe import OptimizerRecipe


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_rates_climb_in_a_line_and_then_follow_the_schedule(kind: str) -> None:
    factor = schedule(OptimizerRecipe(schedule=kind, warmup=0.2), 100)
    assert [factor(s) for s in range(20)] == pytest.approx([(s + 1) / 20 for s in range(20)])
    assert factor(20) == pytest.approx(1.0)
    for step in (20, 40, 60, 99, 100):
        done = (step - 20) / 80
        expected = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[kind]
        assert factor(step) == pytest.approx(expected)
    rates = [factor(s) for s in range(20, 101)]
    assert rates == sorted(rates, reverse=True)
    assert factor(1000) == (1.0 if kind == "constant" else 0.0)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9])
def test_runs_of_few_steps_have_a_rate_too(steps: int, warmup: float) -> None:
    factor = schedule(OptimizerRecipe(warmup=warmup), steps)
    assert all(0 < factor(step) <= 1 for step in range(steps))


def test_every_trained_parameter_is_in_one_group() -> None:
    model = tiny_network(
        vision={"kind": "grid", "backbone": "test_efficientnet", "image_size": 64, "trainable": True},
        region_feature_size=256, word_embedding_frozen=True, num_special_words=20,
    )  # fmt: skip
    groups = parameter_groups(model, OptimizerRecipe(lr=1e-3, vision_lr=1e-5, weight_decay=0.1))
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(id(p) for p in trained.values())
    assert id(model.trunk.embeddings.words.weight) not in grouped
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in trained.items():
        rate, decay = settings[id(parameter)]
        assert rate == (1e-5 if ".vision." in name else 1e-3), name
        single = parameter.dim() < 2  # biases, norms, scales, the [IMG] and [END] vectors ...
        assert decay == (0.0 if single else 0.1), name


def test_a_warm_up_can_be_given_in_steps() -> None:
    factor = schedule(OptimizerRecipe(schedule="linear", warmup=0.5, warmup_steps=4), 12)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.875]


@pytest.mark.parametrize(("given", "rate"), [(None, 3e-4), (0.0, 0.0), (2e-5, 2e-5)])
def test_vision_takes_the_common_rate_unless_given_its_own(given: float | None, rate: float) -> None:
    model = torch.nn.ModuleDict({"trunk": torch.nn.ModuleDict({"vision": torch.nn.Linear(2, 2)})})
    wrapped = torch.nn.ModuleDict({"model": model})
    groups = parameter_groups(wrapped, OptimizerRecipe(lr=3e-4, vision_lr=given))
    assert {g["lr"] for g in groups} == {rate}


def test_tables_have_a_rate_of_their_own_and_do_not_decay() -> None:
    """A row of them sees few steps: its word or group has to be in the batch."""
    module = TrainingModule(tiny_network(), {"m/proxy": {}}, torch.tensor([1, 2, 3]))
    groups = parameter_groups(module, OptimizerRecipe(lr=1e-3, table_lr=1e-2, weight_decay=0.1))
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert settings[id(module.model.trunk.embeddings.words.weight)] == (1e-2, 0.0)
    assert settings[id(module.states["proxy"].table)] == (1e-2, 0.0)
    assert settings[id(module.model.trunk.embeddings.positions.weight)] == (1e-3, 0.1)
    assert settings[id(module.model.match_head.weight)] == (1e-3, 0.1)
