"""VL-BERT's two configurations of VQA v2 as recipes of ours: what they say, and a step of each on a small corpus."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import WORDS, Sizes, pretraining_shapes, random_state, write_checkpoint, write_yaml
from published import NAMES, ROWS, recipe_of, settings_of
from starts import small_bert
from stores import make_store
from vl_corpora import make_vqa_v2

from mmbert import MMBert
from mmbert.cli.main import run
from mmbert.data.sources import open_data
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train
from mmbert.vision.regions import Regions

torch.set_num_threads(1)
QUESTIONS = [name for name in NAMES if name.startswith("VL-BERT/vqa/")]
pytestmark = pytest.mark.skipif(not ROWS, reason="no published-settings.json beside the repository")
TINY = Sizes(layers=1, features=64)
ANSWERS = ["ball", "dog", "red"]
QUESTIONS = [name for name in NAMES if name.startswith("VL-BERT/vqa/")]


def test_there_are_two() -> None:
    assert [name.rpartition("/")[2] for name in QUESTIONS] == ["base_4x16G_fp32", "large_4x16G_fp32"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_recipe_says_what_the_configuration_says(name: str, tmp_path: Path) -> None:
    recipe, settings = recipe_of(name, tmp_path), settings_of(name)
    network, training = settings["NETWORK"], settings["TRAIN"]
    config = recipe.model.config
    for key in ("hidden_size", "visual_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert config[key] == network["VLBERT"][key], key
    assert config["heads"] == {"answer": {"kind": "transform", "norm": True, "outputs": 3129, "dropout": 0.1}}
    assert config["vision"] is None
    assert not (config["with_pooler"] or config["match_outputs"] or config["num_region_classes"])
    init: Any = recipe.model.init
    assert (init.text, init.models) == (network["BERT_MODEL_NAME"], [network["PARTIAL_PRETRAIN"]])
    assert (init.heads["answer"].transform, init.heads["answer"].words) == ("token_head", "answers_vqa.txt")
    (component,) = recipe.components.values()
    assert component.task == "question_answering"
    assert component.options == {"answers": "answers_vqa.txt", "flip": 0.5}
    assert component.records == training["BATCH_IMAGES"]
    optimizer = recipe.effective_optimizer(4)
    accumulation = training.get("GRAD_ACCUMULATE_STEPS", 1)
    assert optimizer.lr == pytest.approx(training["LR"] * training["BATCH_IMAGES"] * 4 * accumulation)
    assert (optimizer.warmup_steps, optimizer.clip, optimizer.weight_decay) == (500, 1.0, 1e-4)
    assert (optimizer.schedule, recipe.epochs, recipe.accumulation) == ("linear", 5, accumulation)
    assert recipe.precision == "fp32"
    assert (recipe.evaluation.measure, recipe.evaluation.metric) == ("vqa", "overall")


@pytest.mark.parametrize(("shipped", "name"), [("vqa", QUESTIONS[:1]), ("vqa-large", QUESTIONS[1:])])
def test_shipped_recipes_have_the_published_hyper_parameters(shipped: str, name: list[str], tmp_path: Path) -> None:
    ours, theirs = load_recipe(shipped), recipe_of(name[0], tmp_path)
    assert ours.effective_optimizer(4) == theirs.effective_optimizer(4)
    assert (ours.epochs, ours.accumulation, ours.precision) == (theirs.epochs, theirs.accumulation, theirs.precision)
    assert ours.components["questions"].records == theirs.components["questions"].records
    assert isinstance(ours.model.init, type(theirs.model.init))
    assert ours.model.init.text == theirs.model.init.text  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with its regions, a vocabulary of answers, a text encoder, and a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("world")
    make_vqa_v2(folder / "vqa")
    (folder / "answers.txt").write_text("\n".join(ANSWERS), "utf-8")
    small_bert(folder / "bert")
    write_checkpoint(folder / "start.model", random_state(pretraining_shapes(TINY, match=0)))
    source = open_data({"source": "vqa_v2", "root": str(folder / "vqa"), "split": "train+val"})
    keys = sorted({source[i].image.key for i in range(len(source))})  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 63, 47], [1, 2, 30, 40]], dtype=np.float32)
    features = rng.standard_normal((len(keys), 2, TINY.features)).astype(np.float32)
    regions = {key: Regions(boxes, rows, (64, 48)) for key, rows in zip(keys, features, strict=True)}
    make_store(folder / "regions", regions, feature_size=TINY.features, num_classes=0)
    return folder


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_step_of_each_runs(name: str, world: Path, tmp_path: Path) -> None:
    recipe_of(name, tmp_path)
    sizes = {
        "hidden_size": TINY.hidden, "visual_size": TINY.visual, "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads, "intermediate_size": TINY.intermediate, "vocab_size": len(WORDS),
        "max_position_embeddings": TINY.positions, "region_feature_size": 64, "heads.answer.outputs": len(ANSWERS),
    }  # fmt: skip
    overrides = [f"model.config.{key}={value}" for key, value in sizes.items()]
    overrides += ["steps=1", "epochs=null", "log_every=1", f"model.init.text={world / 'bert'}"]
    overrides += [f"model.init.model={world / 'start.model'}", f"features={world / 'regions'}"]
    overrides += [f"components.questions.options.answers={world / 'answers.txt'}"]
    overrides += [f"model.init.heads.answer.words={world / 'answers.txt'}"]
    overrides += [f"data={{source: vqa_v2, root: {world / 'vqa'}, split: train+val}}"]
    result = train(load_recipe(str(tmp_path / "recipe.yaml"), overrides), tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    step = next(line for line in logged if "loss" in line)
    assert math.isfinite(step["loss"])
    assert step["loss"] > 0
    assert {"questions/answer", "questions/answer/score"} <= set(step)
    started = json.loads((tmp_path / "run" / "initialisation.json").read_text())
    assert any("mlm_head.predictions.transform" in key for key in started["used"][str(world / "start.model")])
    assert not any(key.startswith("heads.answer.predictor.weight") for key in started["fresh"])
    assert MMBert.from_pretrained(result.model).config.heads["answer"]["labels"] == ANSWERS


def test_what_is_carried_over_is_not_listed_as_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_yaml(tmp_path / "c.yaml", settings_of(QUESTIONS[0]))
    assert run(["convert", str(source), "--to", "recipe", "--out", str(tmp_path / "r.yaml")]) == 0
    said = capsys.readouterr().err
    assert "DATASET.DATASET_PATH = coco" in said
    assert not any(key in said for key in ("FLIP_PROB", "ANSWER_VOCAB_FILE"))
