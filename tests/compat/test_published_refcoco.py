"""VL-BERT's four configurations of RefCOCO+ as recipes of ours: what they say, and a step of each on a small corpus."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import WORDS, Sizes, pretraining_shapes, random_state, write_checkpoint, write_yaml
from published import NAMES, ROWS, recipe_of, settings_of
from starts import small_bert
from vl_corpora import make_refcoco

from mmbert.cli.main import run
from mmbert.compat.recipes import recipe_from_yaml
from mmbert.errors import ConfigError
from mmbert.training.recipe import Recipe, load_recipe
from mmbert.training.run import train

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not ROWS, reason="no published-settings.json beside the repository")
TINY = Sizes(layers=1, features=2048)
EXPRESSIONS = [name for name in NAMES if name.startswith("VL-BERT/refcoco/")]
BOXES = {"gt": "objects", "proposal": "detections", "proposal+gt": "detections+objects"}


def test_there_are_four() -> None:
    assert len(EXPRESSIONS) == 4


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_recipe_says_what_the_configuration_says(name: str, tmp_path: Path) -> None:
    recipe, settings = recipe_of(name, tmp_path), settings_of(name)
    network, training, data = settings["NETWORK"], settings["TRAIN"], settings["DATASET"]
    config = recipe.model.config
    for key in (
        "hidden_size", "visual_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    ):  # fmt: skip
        assert config[key] == network["VLBERT"][key], key
    assert config["heads"] == {"grounding": {"kind": "transform", "outputs": 1, "dropout": 0.0}}
    assert not (config["match_outputs"] or config["num_region_classes"] or config["with_mlm_head"])
    vision = config["vision"]
    assert (vision["kind"], vision["layers"], vision["short_side"], vision["long_side"]) == ("resnet", 101, 600, 1000)
    assert recipe.model.backbone_weights == "resnet101-pt-vgbua-0000.model"
    init: Any = recipe.model.init
    assert (init.text, init.models) == (network["BERT_MODEL_NAME"], [network["PARTIAL_PRETRAIN"]])
    assert init.heads["grounding"].transform == "region_head"
    (component,) = recipe.components.values()
    assert (component.task, component.options) == ("grounding", {"flip": 0.5})
    for given, part, split in ((component.data, "TRAIN", "train"), (recipe.evaluation.data, "VAL", "val")):
        candidates = BOXES[data[f"{part}_BOXES"]]
        assert given == {"source": "refcoco_plus", "root": "coco", "split": split, "candidates": candidates}
    assert component.records == training["BATCH_IMAGES"]
    optimizer = recipe.effective_optimizer(4)
    steps = training["GRAD_ACCUMULATE_STEPS"]
    assert optimizer.lr == pytest.approx(8e-7 * training["BATCH_IMAGES"] * 4 * steps)
    assert (optimizer.name, optimizer.schedule, optimizer.warmup_steps) == ("adamw", "linear", 3750)
    assert (optimizer.weight_decay, optimizer.clip) == (1e-4, 1.0)
    assert (recipe.epochs, recipe.accumulation, recipe.precision) == (20, steps, "fp32")
    assert (recipe.evaluation.measure, recipe.evaluation.metric) == ("grounding", "accuracy")


def test_boxes_of_another_kind_are_refused(tmp_path: Path) -> None:
    settings = settings_of(EXPRESSIONS[0])
    settings["DATASET"]["TRAIN_BOXES"] = "anchors"
    with pytest.raises(ConfigError, match=r"DATASET\.TRAIN_BOXES 'anchors' is not supported"):
        recipe_from_yaml(write_yaml(tmp_path / "c.yaml", settings))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a text encoder, and an end-to-end checkpoint to start from."""
    folder = tmp_path_factory.mktemp("world")
    make_refcoco(folder / "coco")
    small_bert(folder / "bert")
    write_checkpoint(folder / "start.model", random_state(pretraining_shapes(TINY, match=0)))
    return folder


def tiny(world: Path) -> list[str]:
    """Overrides that bring a recipe down to one step on the small corpus; nothing else of it changes."""
    sizes = {
        "hidden_size": TINY.hidden, "visual_size": TINY.visual, "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads, "intermediate_size": TINY.intermediate, "vocab_size": len(WORDS),
        "max_position_embeddings": TINY.positions,
    }  # fmt: skip
    found = [f"model.config.{key}={value}" for key, value in sizes.items()]
    found += ["model.config.vision={kind: resnet, layers: 14, short_side: 32, long_side: 48}"]
    found += ["model.backbone_weights=null", f"model.init.text={world / 'bert'}"]
    found += [f"model.init.model={world / 'start.model'}", "steps=1", "epochs=null", "log_every=1"]
    return [*found, f"components.expressions.data.root={world / 'coco'}", f"evaluation.data.root={world / 'coco'}"]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_step_of_each_runs(name: str, world: Path, tmp_path: Path) -> None:
    recipe_of(name, tmp_path)
    recipe: Recipe = load_recipe(str(tmp_path / "recipe.yaml"), tiny(world))
    result = train(recipe, tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    step = next(line for line in logged if "loss" in line)
    assert math.isfinite(step["loss"])
    assert step["expressions/grounding"] > 0
    assert float(step["grad_norm"]) > 0
    assert result.metrics["evaluation"]["splits"]["val"]["expressions"] == 1
    started = json.loads((tmp_path / "run" / "initialisation.json").read_text())
    assert any("mvrc_head.transform" in key for key in started["used"][str(world / "start.model")])


def test_what_is_not_carried_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_yaml(tmp_path / "c.yaml", settings_of(EXPRESSIONS[0]))
    assert run(["convert", str(source), "--to", "recipe", "--out", str(tmp_path / "r.yaml")]) == 0
    said = capsys.readouterr().err
    assert "DATASET.TEST_BOXES = proposal" in said
    assert not any(key in said for key in ("FLIP_PROB", "TRAIN_BOXES", "VAL_BOXES", "DATASET_PATH"))
