"""Recipes that learn to find translations in a toy language pair, and what commands then say of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbert.api.front_door import MMBert
from mmbert.cli.main import run
from mmbert.errors import ConfigError
from mmbert.evaluation.tuning import MATCH_WEIGHTS
from mmbert.training.recipe import load_recipe
from mmbert.training.run import TrainingResult, _on_the_same_data, train

torch.set_num_threads(1)
SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "no", "pu", "ri"]
WORDS = {a + b: f"{b}{a}n" for a in SYLLABLES for b in SYLLABLES}


def write_pairs(folder: Path, name: str, count: int, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(list(WORDS), int(rng.integers(3, 6))) for _ in range(count)]
    lines = {"en": [" ".join(words) for words in chosen], "de": [" ".join(WORDS[w] for w in words) for words in chosen]}
    for code, texts in lines.items():
        (folder / f"{name}.{code}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {code: str(folder / f"{name}.{code}") for code in lines}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    return {"folder": folder, "train": write_pairs(folder, "train", 600, 0), "test": write_pairs(folder, "test", 60, 1)}


def overrides(world: dict[str, Any], **changes: Any) -> list[str]:
    settings: dict[str, Any] = {
        "epochs": "null", "precision": "fp32", "log_every": 10, "components.pairs.records": 100,
        "data": json.dumps({"source": "text", "paths": world["train"]}),
        "evaluation.data": json.dumps({"source": "text", "paths": world["test"]}),
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (settings | changes).items()]


def small() -> dict[str, Any]:
    sizes = {
        "hidden_size": 32, "embedding_size": 32, "visual_size": 32, "num_attention_heads": 2, "intermediate_size": 48,
        "num_hidden_layers": 1, "max_position_embeddings": 64, "max_text_tokens": 24,
    }  # fmt: skip
    return {f"model.config.{key}": value for key, value in sizes.items()} | {"model.tokenizer.vocab_size": 300}


@pytest.fixture(scope="module")
def first(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    changes = small() | {"steps": 60, "evaluation.every": 30, "optimizer.lr": 2e-3}
    return train(
        load_recipe("translation-retrieval", overrides(world, **changes)), tmp_path_factory.mktemp("a") / "run"
    )


@pytest.fixture(scope="module")
def second(world: dict[str, Any], first: TrainingResult, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    changes = {"model.init": first.model, "steps": 30, "evaluation.every": 15, "components.pairs.records": 60}
    recipe = load_recipe("translation-retrieval-pairs", overrides(world, **changes))
    return train(recipe, tmp_path_factory.mktemp("b") / "run")


def logged(result: TrainingResult, name: str) -> list[float]:
    lines = map(json.loads, (result.folder / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_translations_are_found_and_the_best_model_is_kept(first: TrainingResult) -> None:
    found = logged(first, "eval_MRR")
    assert len(found) == 2
    assert first.metrics["evaluation"]["mean"]["MRR"] == max(found) > 0.85
    losses = logged(first, "pairs/ttc")
    assert losses[-1] < 0.3 * losses[0]
    card = (first.model / "README.md").read_text("utf-8")
    assert "Translation retrieval on `source=text" in card
    assert "| en | de | 60 |" in card


def by_hand(model: MMBert, world: dict[str, Any]) -> dict[str, float]:
    """R@1 of both directions, one question at a time, from the vectors alone."""
    texts = {code: Path(path).read_text().splitlines() for code, path in world["test"].items()}
    vectors = {code: model.encode_text(lines) for code, lines in texts.items()}
    found = {}
    for asking, answering in (("en", "de"), ("de", "en")):
        hits = 0
        for number, vector in enumerate(vectors[asking]):
            cosines = [float(vector @ other) for other in vectors[answering]]
            hits += all(cosine < cosines[number] for i, cosine in enumerate(cosines) if i != number)
        found[f"{asking}_to_{answering}"] = hits / len(texts[asking])
    return found


def test_the_command_says_what_a_loop_over_the_vectors_says(
    world: dict[str, Any], second: TrainingResult, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = zip(*(Path(world["test"][code]).read_text().splitlines() for code in ("en", "de")), strict=True)
    lines = [json.dumps({"text_en": en, "text_de": de}) for en, de in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["evaluate", "translation-retrieval", "--model", str(second.model), "--data", str(tmp_path)]
    assert run([*command, "--from", "en", "--to", "de", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for direction, share in by_hand(MMBert.from_pretrained(second.model, device="cpu"), world).items():
        assert report[direction]["R@1"] == pytest.approx(share)


def test_pairs_are_learned_beside_and_their_weight_is_tuned(second: TrainingResult) -> None:
    losses = logged(second, "pairs/ttm_hard")
    assert min(losses) < losses[0]
    config = json.loads((second.model / "config.json").read_text())
    assert config.get("rerank_weight", 1.0) in MATCH_WEIGHTS
    assert second.metrics["evaluation"]["mean"]["MRR"] > 0.8, "re-ranked with the best weight"


def test_the_first_stage_reads_the_data_of_the_run(world: dict[str, Any]) -> None:
    whole = load_recipe("translation-retrieval-pairs", overrides(world, steps=1))
    stage = _on_the_same_data(load_recipe("translation-retrieval"), whole)
    assert (stage.data, stage.evaluation.data) == (whole.data, whole.evaluation.data)
    assert stage.evaluation.measure == "translation_retrieval"
    shipped = load_recipe("starter")
    assert _on_the_same_data(shipped, whole).evaluation == shipped.evaluation


def test_weights_are_only_tuned_where_something_is_re_ranked(world: dict[str, Any], tmp_path: Path) -> None:
    changes = small() | {"steps": 1, "evaluation.tune_rerank": True, "evaluation.measure": "translation"}
    recipe = load_recipe("translation-retrieval", overrides(world, **changes))
    with pytest.raises(ConfigError, match="nothing is re-ranked in translation"):
        train(recipe, tmp_path / "run")
