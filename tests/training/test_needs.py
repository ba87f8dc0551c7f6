"""Recipes whose objectives lack something end before the run's folder is touched, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_network

from mmbert import plugins
from mmbert.errors import ConfigError, TrainingError
from mmbert.objectives import itm_hard
from mmbert.training.module import TrainingModule
from mmbert.training.needs import PARTS
from mmbert.training.recipe import Recipe
from mmbert.training.run import train

torch.set_num_threads(1)
MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("config", "main", "masked", "message"),
    [
        ({}, {"itm_hard": {}}, {"mlm": {}}, r"main/itm_hard needs itc.*add components.main.objectives.itc: {}"),
        ({"embedding_size": 0}, {"itc": {}}, {"mlm": {}}, "main/itc needs .*set model.config.embedding_size"),
        ({"embedding_size": 0}, {"proxy": {}}, {"mlm": {}}, "main/proxy needs .*set model.config.embedding_size"),
        ({"match_outputs": 0}, {"itc": {}, "itm_hard": {}}, {"mlm": {}}, "set model.config.match_outputs"),
        ({}, {"itc": {}}, {"mvrc": {}}, "masked/mvrc needs .*set model.config.num_region_classes"),
        ({"num_region_classes": 9}, {"itc": {}}, {"mvrc": {}}, "set model.config.vision.classes, or choose mvfr"),
        ({"region_regression": False}, {"itc": {}}, {"mvfr": {}}, "set model.config.region_regression"),
        ({"with_mlm_head": False}, {"itc": {}}, {"mlm": {}}, "set model.config.with_mlm_head"),
        ({}, {"ttc": {"across": True}}, {"mlm": {}}, "components.main: objective ttc.*'second'"),
    ],
)
def test_what_an_objective_lacks_is_said_before_the_run(
    config: dict[str, Any],
    main: dict[str, Any],
    masked: dict[str, Any],
    message: str,
    recipe_of: MakeRecipe,
    tmp_path: Path,
) -> None:
    content = recipe_of(steps=2, model={"config": config}).model_dump()
    for name, chosen in (("main", main), ("masked", masked)):
        content["components"][name]["objectives"] = chosen
    with pytest.raises(ConfigError, match=message):
        train(Recipe.model_validate(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("frozen", [["*"], ["trunk.*", "*head*"]])
def test_a_run_that_would_train_nothing_of_the_model_is_an_error(
    frozen: list[str], recipe_of: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no parameter of the model is trained"):
        train(recipe_of(steps=2, optimizer={"frozen": frozen}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", plugins.names("mmbert.objectives"))
def test_every_objective_says_what_it_needs(name: str) -> None:
    module = plugins.load("mmbert.objectives", name)
    assert module.NEEDS and all(part in PARTS or part.startswith("heads.") for part in module.NEEDS)
    lacking = tiny_network(
        embedding_size=0, match_outputs=0, with_mlm_head=False, num_region_classes=0, region_regression=False
    )
    with pytest.raises(ConfigError, match=f"objective m/{name} needs a model with"):
        TrainingModule(lacking, {f"m/{name}": {}}, torch.arange(2))


def test_a_run_that_diverges_ends_by_its_loss_with_pairs_drawn_by_similarity_too(
    recipe_of: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"(the loss|the gradient's norm) is (nan|inf)"):
        train(recipe_of(optimizer={"name": "sgd", "lr": 1e20, "clip": 0, "ema": 0.0}), tmp_path / "out")


def test_from_what_is_not_finite_pairs_are_drawn_evenly() -> None:
    similarity = torch.tensor([[float("nan"), 1.0, 1.0], [50.0, 0.0, 0.0]]).repeat(200, 1)
    positive = torch.tensor([[True, False, False], [False, False, True]]).repeat(200, 1)
    drawn = itm_hard._draw(similarity, positive, itm_hard.Options(), torch.Generator().manual_seed(0))[:, 0]
    assert set(drawn[::2].tolist()) == {1, 2} and set(drawn[1::2].tolist()) == {0}


def test_what_another_objective_reads_has_to_be_possible_even_at_weight_0() -> None:
    """``itm_hard`` draws its pairs by the vectors of ``itc``, which a loaded model may not make."""
    lacking = tiny_network(embedding_size=0)
    with pytest.raises(ConfigError, match="objective m/itc needs a model with an embedding"):
        TrainingModule(lacking, {"m/itc": {"weight": 0.0}, "m/itm_hard": {}}, torch.arange(2))
    TrainingModule(lacking, {"m/itc": {"weight": 0.0}, "m/itm_hard": {"weight": 0.0}, "m/mlm": {}}, torch.arange(2))
