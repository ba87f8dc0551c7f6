"""VL-BERT's six configurations of VCR as recipes of ours: what they say, and a step of each on a small corpus."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from originals import WORDS, Sizes, pretraining_shapes, random_state, write_checkpoint, write_yaml
from published import NAMES, ROWS, recipe_of, settings_of
from starts import small_bert
from vl_corpora import make_vcr

from mmbert.cli.main import run
from mmbert.compat.recipes import recipe_from_yaml
from mmbert.errors import ConfigError
from mmbert.training.recipe import Recipe, load_recipe
from mmbert.training.run import train

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not ROWS, reason="no published-settings.json beside the repository")
TINY = Sizes(layers=1, features=2048)
CHOICES = [name for name in NAMES if name.startswith("VL-BERT/vcr/")]


def test_there_are_six() -> None:
    assert len(CHOICES) == 6


@pytest.mark.parametrize("name", CHOICES)
def test_the_recipe_says_what_the_configuration_says(name: str, tmp_path: Path) -> None:
    recipe, settings = recipe_of(name, tmp_path), settings_of(name)
    network, training = settings["NETWORK"], settings["TRAIN"]
    config = recipe.model.config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        assert config[key] == network["VLBERT"][key], key
    assert config["with_pooler"]
    assert not (config["match_outputs"] or config["num_region_classes"] or config["with_mlm_head"])
    assert config["heads"]["choice"] == {"kind": "linear", "outputs": 1, "dropout": 0.1}
    assert config["heads"]["region_class"]["outputs"] == 81
    vision = config["vision"]
    assert (vision["kind"], vision["layers"], vision["short_side"], vision["long_side"]) == ("resnet", 101, 600, 1200)
    assert recipe.model.backbone_weights == "resnet101-pt-vgbua-0000.model"
    init: Any = recipe.model.init
    assert (init.text, init.models) == (network["BERT_MODEL_NAME"], [network["PARTIAL_PRETRAIN"]])
    assert init.heads["region_class"].transform == "region_head"
    assert init.segments == {1: 0}
    (component,) = recipe.components.values()
    assert component.task == "vcr"
    assert component.options == {
        "step": {"Q2A": "answer", "QA2R": "rationale"}[settings["DATASET"]["TASK"]], "objects": "all", "flip": 0.5,
        "max_text": 64, "image": True, "grounding": True, "choice_first": False, "question": True,
    }  # fmt: skip
    weights = {objective: options["weight"] for objective, options in component.objectives.items()}
    assert weights == {"choice": 1.0, "region_class": 1.0}
    assert component.objectives["choice"]["sigmoid"]
    assert component.records == training["BATCH_IMAGES"]
    optimizer = recipe.effective_optimizer(4)
    accumulation = training.get("GRAD_ACCUMULATE_STEPS", 1)
    assert optimizer.lr == pytest.approx(training["LR"] * training["BATCH_IMAGES"] * 4 * accumulation)
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (optimizer.schedule, optimizer.factor, optimizer.warmup_steps) == ("multistep", 0.1, 1000)
    assert optimizer.milestones == pytest.approx([14 / 20, 18 / 20])
    assert (recipe.epochs, recipe.accumulation, optimizer.clip) == (20, accumulation, 10)
    measured = {"answer": "Q2A", "rationale": "QA2R"}[component.options["step"]]
    assert (recipe.evaluation.measure, recipe.evaluation.metric) == ("vcr", measured)
    assert recipe.evaluation.options.get("steps", ["answer"]) == [component.options["step"]]
    assert (recipe.precision == "fp32") is not training["FP16"]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("DATASET", "TASK", "Q2AR", "DATASET.TASK 'Q2AR' is not supported"),
        ("DATASET", "BASIC_ALIGN", True, "DATASET.BASIC_ALIGN True is not supported"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    section: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    settings = settings_of(CHOICES[0])
    settings[section][key] = value
    with pytest.raises(ConfigError, match=message):
        recipe_from_yaml(write_yaml(tmp_path / "c.yaml", settings))


def test_ablations_and_the_regulariser_are_carried_over(tmp_path: Path) -> None:
    settings = settings_of(CHOICES[1])
    settings["NETWORK"] |= {"BLIND": True, "NO_GROUNDING": True, "ANSWER_FIRST": True, "CNN_LOSS_TOP": False}
    settings["NETWORK"]["PARTIAL_PRETRAIN_PREFIX_CHANGES"] = []  # there is no head on final states to start
    settings["DATASET"] |= {"ONLY_USE_RELEVANT_DETS": True, "QA2R_NOQ": True, "SEQ_LEN": 80}
    content = recipe_from_yaml(write_yaml(tmp_path / "c.yaml", settings)).content
    component = content["components"]["choices"]
    assert component["options"] == {
        "step": "rationale", "objects": "mentioned", "flip": 0.5, "max_text": 80, "image": False, "grounding": False,
        "choice_first": True, "question": False,
    }  # fmt: skip
    assert component["objectives"] == {"choice": {"sigmoid": True, "weight": 1.0}, "feature_class": {"weight": 1.0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    assert set(recipe.components["choices"].objectives) == {"choice", "feature_class"}
    assert set(recipe.model.config["heads"]) == {"choice", "feature_class"}
    assert recipe.evaluation.metric == "QA2R"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a text encoder, and an end-to-end checkpoint to start from."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "vcr").mkdir()
    make_vcr(folder / "vcr")
    small_bert(folder / "bert")
    write_checkpoint(folder / "start.model", random_state(pretraining_shapes(TINY, match=0)))
    return folder


def tiny(recipe: Recipe, world: Path) -> list[str]:
    """Overrides that bring a recipe down to one step on the small corpus; nothing else of it changes."""
    sizes = {
        "hidden_size": TINY.hidden, "visual_size": TINY.visual, "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads, "intermediate_size": TINY.intermediate, "vocab_size": len(WORDS),
        "max_position_embeddings": TINY.positions,
    }  # fmt: skip
    found = [f"model.config.{key}={value}" for key, value in sizes.items()]
    found += ["model.config.vision={kind: resnet, layers: 14, short_side: 32, long_side: 48}"]
    found += ["model.backbone_weights=null", f"model.init.text={world / 'bert'}"]
    found += [f"model.init.model={world / 'start.model'}"]
    found += ["steps=1", "epochs=null", "precision=fp32", "log_every=1", "components.choices.options.max_text=20"]
    return [*found, f"data={{source: vcr, root: {world / 'vcr'}, split: train}}"]


@pytest.mark.parametrize("name", CHOICES)
def test_a_step_of_each_runs(name: str, world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(name, tmp_path)
    train(load_recipe(str(tmp_path / "recipe.yaml"), tiny(recipe, world)), tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    step = next(line for line in logged if "loss" in line)
    assert math.isfinite(step["loss"])
    assert step["loss"] > 0
    assert {"choices/choice", "choices/region_class"} <= set(step)
    started = json.loads((tmp_path / "run" / "initialisation.json").read_text())
    assert any("mvrc_head.transform" in key for key in started["used"][str(world / "start.model")])


def test_what_is_not_carried_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_yaml(tmp_path / "c.yaml", settings_of(CHOICES[0]))
    assert run(["convert", str(source), "--to", "recipe", "--out", str(tmp_path / "r.yaml")]) == 0
    said = capsys.readouterr().err
    assert "DATASET.DATASET_PATH = vcr" in said
    assert not any(key in said for key in ("FLIP_PROB", "DATASET.TASK", "LR_STEP", "MOMENTUM", "LR_FACTOR"))
