"""Grounding is learned from official files: which of several coloured squares does "the red square" mean?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grounded import LOOKING, make_squares

from mmbert.api.features import Job, extract_features
from mmbert.api.front_door import MMBert
from mmbert.data.prepare import prepare
from mmbert.data.sources import open_data
from mmbert.evaluation.grounding import evaluate_grounding
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "visual_size": 32,
    "coordinate_frequencies": 4, "num_region_classes": 0, "match_outputs": 0, "with_pooler": False,
    "with_mlm_head": False, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_text_tokens": 16,
    "visual_scale_text_init": 0.3, "visual_scale_object_init": 0.3,
}  # fmt: skip


def overrides(root: Path, vision: dict[str, object]) -> list[str]:
    """The recipe on a small network of its own, on the corpus in ``root``."""
    found = [f"model.config.{key}={json.dumps(value)}" for key, value in SIZES.items()]
    found += [f"model.config.vision={json.dumps(vision)}", "model.init=null", "model.tokenizer.path=" + str(root / "t")]
    found += ["precision=fp32", "epochs=null", "optimizer.ema=0", "optimizer.lr=3e-3", "save_dtype=fp32"]
    found += [f"data={{source: refcoco, root: {root}, split: train}}", "evaluation.every=null"]
    return [*found, f"evaluation.data={{source: refcoco, root: {root}, split: val}}"]


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four squares each, and the tokenizer of their expressions."""
    from mmbert.text.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("squares")
    make_squares(root, {"train": 48, "val": 12, "testA": 12})
    source = open_data({"source": "refcoco", "root": root})
    said = [source[i].annotation["expression"] for i in range(len(source))]
    train_tokenizer(said, vocab_size=80).save_pretrained(root / "t")
    return root


@pytest.mark.slow
def test_it_is_learned_from_pixels_and_from_stored_regions(squares: Path, tmp_path: Path) -> None:
    """The stored regions are those of the model itself, so that it can look for itself afterwards."""
    recipe = load_recipe("grounding", [*overrides(squares, LOOKING), "steps=2"])
    start = train(recipe, tmp_path / "start").model
    prepare("refcoco", squares, tmp_path / "store", {"split": "train,val"}, allow_incomplete=True)
    extract_features(Job(str(tmp_path / "store"), str(start), str(tmp_path / "regions")))
    stored = [f"data={{source: prepared, root: {tmp_path / 'store'}, split: train}}", "steps=900"]
    stored += [f"evaluation.data={{source: prepared, root: {tmp_path / 'store'}, split: val}}"]
    stored += [f"features={tmp_path / 'regions'}", f"model.init={start}", "model.config={}"]
    result = train(load_recipe("grounding", [*overrides(squares, LOOKING), *stored]), tmp_path / "run")
    assert result.metrics["evaluation"]["accuracy"] >= 0.8
    bert = MMBert.from_pretrained(result.model)
    source = open_data({"source": "refcoco", "root": squares, "split": "testA"})
    report = evaluate_grounding(bert, [source[i] for i in range(len(source))]).report
    assert report["accuracy"] >= 0.8
    assert report["chance"] <= 0.2
