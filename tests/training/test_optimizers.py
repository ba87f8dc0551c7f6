"""Optimisers, schedules, layer-wise rates, frozen parts and adapters."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from stopping import interrupt
from tiny import tiny_network
from torch.optim.lr_scheduler import LambdaLR

import mmbert.training.trainer
from mmbert import MMBert
from mmbert.errors import ConfigError
from mmbert.evaluation.measures import Measured, retrieval
from mmbert.model.modeling import MMBertForPreTraining, build_vision
from mmbert.training.callbacks import read_log
from mmbert.training.clipping import clip_gradients
from mmbert.training.lora import add_lora, merged
from mmbert.training.module import TrainingModule
from mmbert.training.optimizers import Plateau, Together, build_optimizer, freeze, parameter_groups, schedule
from mmbert.training.recipe import LoraRecipe, OptimizerRecipe, Recipe
from mmbert.training.run import train

torch.set_num_threads(1)
MakeRecipe = Callable[..., Recipe]
NAMES = ("adamw", "adam", "sgd", "adafactor", "muon")


def quadratic_model() -> torch.nn.Module:
    """Parameters named as a network's, whose loss is their distance from 1."""
    model = tiny_network(1).train()
    return torch.nn.ModuleDict({"model": model})


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.stack([(p - 1).pow(2).mean() for p in model.parameters() if p.requires_grad]).sum()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_descends_and_goes_on_where_it_was(name: str) -> None:
    recipe = OptimizerRecipe(name=name, lr=0.02, weight_decay=0.0)

    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()

    whole, cut = quadratic_model(), quadratic_model()
    before = loss_of(whole).item()
    steps(whole, build_optimizer(whole, recipe), 6)
    assert float(loss_of(whole)) < before
    first = build_optimizer(cut, recipe)
    steps(cut, first, 3)
    second = build_optimizer(cut, recipe)
    second.load_state_dict(first.state_dict())
    steps(cut, second, 3)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_muon_takes_the_layers_matrices_alone_and_hears_the_schedule() -> None:
    model = quadratic_model()
    optimizer = build_optimizer(model, OptimizerRecipe(name="muon", lr=0.1))
    assert isinstance(optimizer, Together)
    muon, adamw = optimizer.parts
    names = {id(p): n for n, p in model.named_parameters()}
    inner = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert inner == {n for n, p in model.named_parameters() if ".encoder.layers." in n and p.dim() == 2}
    rates = LambdaLR(optimizer, lambda step: 0.5**step)
    loss_of(model).backward()
    optimizer.step()
    rates.step()
    assert {g["lr"] for part in (muon, adamw) for g in part.param_groups} == {0.05}


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("lora", "peft")])
def test_a_missing_library_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    for module in ("optimizers", "lora"):
        where = sys.modules[f"mmbert.training.{module}"]
        monkeypatch.setattr(where, "find_spec", lambda n: None if n == package else find(n))
    use = {
        "lora": lambda: add_lora(tiny_network(), LoraRecipe()),
        "adamw8bit": lambda: build_optimizer(quadratic_model(), OptimizerRecipe(name="adamw8bit")),
    }
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        use[name]()


def test_layers_below_learn_slower() -> None:
    recipe = OptimizerRecipe(lr=1.0, layer_decay=0.5, table_lr=3.0)
    rates = {}
    model = quadratic_model()
    names = {id(p): n for n, p in model.named_parameters()}
    for group in parameter_groups(model, recipe):
        rates |= {names[id(p)].removeprefix("model."): group["lr"] for p in group["params"]}
    assert rates["trunk.encoder.layers.1.output.weight"] == 0.5
    assert rates["trunk.encoder.layers.0.output.weight"] == 0.25
    assert rates["trunk.embeddings.positions.weight"] == rates["trunk.region_embedding.projection.weight"] == 0.125
    assert rates["trunk.embeddings.words.weight"] == 3.0
    assert rates["match_head.weight"] == rates["trunk.pooler.dense.weight"] == 1.0


def test_with_slower_layers_the_word_table_is_an_embedding_and_a_table_of_proxies_is_none() -> None:
    made = TrainingModule(tiny_network(), {"main/proxy": {}}, torch.arange(3))
    found = {}
    for rate in (None, 3.0):
        groups = parameter_groups(made, OptimizerRecipe(lr=1.0, layer_decay=0.5, table_lr=rate))
        of = {id(p): group for group in groups for p in group["params"]}
        words, proxies = of[id(made.model.trunk.embeddings.words.weight)], of[id(made.states["proxy"].table)]
        assert words["weight_decay"] == proxies["weight_decay"] == 0.0
        found[rate] = (words["lr"], proxies["lr"])
    assert found == {None: (0.125, 1.0), 3.0: (3.0, 3.0)}


def test_rates_drop_at_milestones() -> None:
    factor = schedule(OptimizerRecipe(schedule="multistep", milestones=[0.5, 0.8], factor=0.2, warmup=0.1), 100)
    assert [factor(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [factor(s) for s in (10, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_triangle_is_linear() -> None:
    one, two = (schedule(OptimizerRecipe(schedule=name, warmup=0.3), 50) for name in ("triangle", "linear"))
    assert [one(s) for s in range(50)] == [two(s) for s in range(50)]


def test_rates_drop_when_evaluations_no_longer_get_better() -> None:
    factor = schedule(OptimizerRecipe(schedule="plateau", patience=1, factor=0.5, warmup_steps=2), 100)
    assert isinstance(factor, Plateau)
    assert [factor(s) for s in (0, 1, 50)] == [0.5, 1.0, 1.0]
    for measured, height in ((0.1, 1.0), (0.3, 1.0), (0.2, 1.0), (0.3, 0.5), (0.3, 0.5), (0.1, 0.25), (0.4, 0.25)):
        factor.note(measured)
        assert factor(50) == height
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    saved = LambdaLR(optimizer, factor).state_dict()
    again = schedule(OptimizerRecipe(schedule="plateau", patience=1, factor=0.5, warmup_steps=2), 100)
    LambdaLR(optimizer, again).load_state_dict(saved)
    assert again(50) == 0.25


def test_evaluations_reach_the_schedule(recipe_of: MakeRecipe, photos: Path, tmp_path: Path) -> None:
    """Weights that hardly move are measured alike; the rate halves from the step after the next on."""
    recipe = recipe_of(
        steps=4,
        evaluation={"data": str(photos), "every": 1, "metric": "R@10"},
        optimizer={"lr": 1e-9, "ema": 0.0, "schedule": "plateau", "patience": 0, "factor": 0.5, "warmup": 0.0},
    )
    train(recipe, tmp_path / "out")
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    rates = [float(line.split('"learning_rate": ')[1].split(",")[0]) for line in lines if '"learning_rate"' in line]
    assert [rate / rates[0] for rate in rates] == pytest.approx([1, 1, 1, 0.5])


@pytest.mark.parametrize(
    ("evaluation", "hint"), [({"every": 1}, "evaluation.data"), ({"data": "photos"}, "evaluation.every")]
)
def test_a_schedule_by_evaluations_needs_some(
    evaluation: dict[str, Any], hint: str, recipe_of: MakeRecipe, photos: Path, tmp_path: Path
) -> None:
    if "data" in evaluation:
        evaluation = {"data": str(photos)}
    with pytest.raises(ConfigError, match=hint):
        train(recipe_of(steps=2, evaluation=evaluation, optimizer={"schedule": "plateau"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rank_that_falls_is_progress_to_the_schedule(
    recipe_of: MakeRecipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = iter((12.0, 9.0, 7.0, 5.0, 3.0))  # one before the first step
    monkeypatch.setattr(retrieval, "measure", lambda *_: Measured({"texts": 1}, {"median_rank": next(ranks)}))
    recipe = recipe_of(
        steps=4,
        evaluation={"data": str(photos), "every": 1, "metric": "median_rank"},
        optimizer={"schedule": "plateau", "patience": 0, "factor": 0.5, "warmup": 0.0},
    )
    monkeypatch.setattr(retrieval, "table", lambda _: [])
    train(recipe, tmp_path / "out")
    assert len({line["learning_rate"] for line in read_log(tmp_path / "out" / "log.jsonl") if "loss" in line}) == 1


def test_wrong_combinations_are_errors() -> None:
    for wrong in ({"schedule": "multistep"}, {"milestones": [0.5]}, {"nesterov": True, "momentum": 0.0}):
        with pytest.raises(ValidationError):
            OptimizerRecipe(**wrong)


def test_parts_are_frozen_by_name() -> None:
    model = tiny_network()
    freeze(model, ["trunk.embeddings.*", "*.layers.0.*"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("trunk.embeddings.") or ".layers.0." in n}
    with pytest.raises(ConfigError, match=r"no parameter is called 'trunk\.embedings"):
        freeze(model, ["trunk.embedings.*"])


def test_what_is_frozen_stays_as_it_is(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    one, two = (
        load_file(
            train(recipe_of(steps=n, optimizer={"frozen": ["trunk.encoder.*"]}), tmp_path / str(n)).model
            / "model.safetensors"
        )
        for n in (1, 2)
    )
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {name for name in one if ".encoder." in name} <= same
    assert "match_head.weight" not in same


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        ({"name": "adamw", "layer_decay": 0.8}, {"accumulation": 2}),
        ({"name": "sgd", "frozen": ["trunk.encoder.*"]}, {"activation_checkpointing": True}),
        ({"name": "muon"}, {}),
        ({"name": "adafactor"}, {}),
    ],
)
def test_a_clipped_run_goes_on_bit_by_bit_and_is_that_of_gradients_scaled_before_the_step(
    optimizer: dict[str, Any],
    more: dict[str, Any],
    recipe_of: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(steps=4, save_every=2, optimizer=optimizer | {"clip": 0.05}, **more)
    interrupt(recipe, tmp_path / "resumed", 3)
    folders = [train(recipe, tmp_path / name).folder for name in ("resumed", "undisturbed")]
    assert all(line["grad_norm"] > 0.05 for line in read_log(folders[1] / "log.jsonl") if "grad_norm" in line)
    monkeypatch.setattr(mmbert.training.trainer, "clip_gradients", lambda own, limit, *_: clip_gradients(own, limit))
    folders.append(train(recipe, tmp_path / "before").folder)
    resumed, undisturbed, before = (load_file(folder / "state/checkpoint-4/model.safetensors") for folder in folders)
    for name, weight in undisturbed.items():
        assert torch.equal(resumed[name], weight), name
        torch.testing.assert_close(before[name], weight, atol=1e-4, rtol=1e-4, msg=name)


def test_adapters_are_trained_and_merged_into_what_is_saved(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    start = train(recipe_of(steps=1), tmp_path / "start")
    content = recipe_of(steps=3).model_dump()
    content["model"] = {"init": str(start.model)}
    content["optimizer"] |= {"lora": {"rank": 2, "modules": ["qkv", "output"]}, "weight_decay": 0.0}
    found = train(Recipe.model_validate(content), tmp_path / "out")
    before, after = (load_file(r.model / "model.safetensors") for r in (start, found))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {n for n in before if n.endswith((".qkv.weight", ".output.weight")) and ".encoder." in n}
    assert adapted <= changed
    assert all("head" in name for name in changed - adapted)
    assert MMBert.from_pretrained(found.model, device="cpu").encode_text("rot").shape == (1, 16)


def test_merging_adapters_changes_nothing_that_is_computed() -> None:
    pytest.importorskip("peft")
    model = tiny_network()
    add_lora(model, LoraRecipe(modules=["qkv"]))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    layer = model.trunk.encoder.layers[0].attention
    values = torch.randn(5, 16)
    adapted, weight = layer.qkv(values), layer.qkv.get_base_layer().weight.detach().clone()
    with merged(model):
        assert type(layer.qkv).__name__ == "Linear" and not hasattr(layer.qkv, "lora_A")
        torch.testing.assert_close(layer.qkv(values), adapted)
    assert torch.equal(layer.qkv.get_base_layer().weight, weight)
    torch.testing.assert_close(layer.qkv(values), adapted)


@pytest.fixture
def seeing_network() -> MMBertForPreTraining:
    """With a vision encoder that has layers called ``attn.qkv``, too."""
    vision = {"kind": "grid", "backbone": "test_vit", "image_size": 64, "trainable": True}
    return tiny_network(vision=vision, region_feature_size=build_vision(vision).feature_size)


def adapted(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


ENCODER_QKV = {f"trunk.encoder.layers.{i}.attention.qkv" for i in (0, 1)}


@pytest.mark.parametrize(
    ("modules", "frozen", "expected"),
    [
        (["qkv"], [], ENCODER_QKV),
        (["qkv"], ["trunk.vision.*"], ENCODER_QKV),
        (["qkv"], ["trunk.encoder.layers.0.*"], {"trunk.encoder.layers.1.attention.qkv"}),
        (["qkv", "match_head"], ["trunk.encoder.*"], {"match_head"}),
        (["projection"], [], {"trunk.region_embedding.projection"}),
        (["trunk.vision.*.qkv"], [], "vision"),
    ],
)
def test_an_adapter_is_put_beside_what_is_named_and_learns(
    modules: list[str], frozen: list[str], expected: set[str] | str, seeing_network: MMBertForPreTraining
) -> None:
    pytest.importorskip("peft")
    freeze(seeing_network, frozen)
    add_lora(seeing_network, LoraRecipe(modules=modules))
    found = adapted(seeing_network)
    if expected == "vision":
        assert found and all(name.startswith("trunk.vision.") and name.endswith(".attn.qkv") for name in found)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("modules", "frozen", "message"),
    [
        (["qvk"], [], "no linear layer's name ends with 'qvk'"),
        (["fc1"], [], "of the vision encoder: 'trunk.vision.*fc1'"),
        (["qkv"], ["trunk.encoder.*"], "all of these layers are frozen"),
    ],
)
def test_adapters_that_fit_nowhere_are_an_error(
    modules: list[str], frozen: list[str], message: str, seeing_network: MMBertForPreTraining
) -> None:
    pytest.importorskip("peft")
    freeze(seeing_network, frozen)
    with pytest.raises(ConfigError, match=re.escape(message)):
        add_lora(seeing_network, LoraRecipe(modules=modules))
