"""A recipe that learns a toy language pair: BLEU rises and keeps the best model, which the commands then use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu, corpus_chrf
from tiny import tiny_network

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.api.writer import Writer
from mmbert.cli.main import run
from mmbert.errors import ConfigError, DataError, UsageError
from mmbert.evaluation.translation import score
from mmbert.text.tokenizer import train_tokenizer
from mmbert.training.recipe import load_recipe
from mmbert.training.run import TrainingResult, train

torch.set_num_threads(1)
WORDS = {"one": "eins", "two": "zwei", "red": "rot", "dog": "Hund", "cat": "Katze", "sees": "sieht"}


def write_pairs(folder: Path, name: str, count: int, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(list(WORDS), int(rng.integers(4, 7))) for _ in range(count)]
    lines = {"en": [" ".join(words) for words in chosen], "de": [" ".join(WORDS[w] for w in words) for words in chosen]}
    for code, texts in lines.items():
        (folder / f"{name}.{code}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {code: str(folder / f"{name}.{code}") for code in lines}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    return {"folder": folder, "train": write_pairs(folder, "train", 500, 0), "test": write_pairs(folder, "test", 12, 1)}


def overrides(world: dict[str, Any], **changes: Any) -> list[str]:
    config = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_decoder_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "visual_size": 32,
        "max_position_embeddings": 24, "max_text_tokens": 20, "initializer_range": 0.15,
    }  # fmt: skip
    settings: dict[str, Any] = {
        "steps": 200, "epochs": "null", "precision": "fp32", "log_every": 20, "components.pairs.tokens": 500,
        "data": json.dumps({"source": "text", "paths": world["train"]}),
        "evaluation.data": json.dumps({"source": "text", "paths": world["test"]}),
        "evaluation.every": 100, "evaluation.options.limit": 12, "optimizer.lr": 0.01, "optimizer.ema": 0.9,
        "model.tokenizer.vocab_size": 300, "components.pairs.options": "{targets: [de]}",
        **{f"model.config.{key}": value for key, value in config.items()},
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (settings | changes).items()]


@pytest.fixture(scope="module", params=[1, 0], ids=["a decoder", "the trunk itself"])
def learned(
    request: pytest.FixtureRequest, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    recipe = load_recipe("translation", overrides(world, **{"model.config.num_decoder_layers": request.param}))
    return train(recipe, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def model(learned: TrainingResult) -> MMBert:
    return MMBert.from_pretrained(learned.model, device="cpu")


def test_the_loss_falls_and_bleu_rises(learned: TrainingResult) -> None:
    logged = [json.loads(line) for line in (learned.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["pairs/lm/nll"] for line in logged if "pairs/lm/nll" in line]
    assert losses[-1] < 0.3 * losses[0]
    bleu = [line["eval_BLEU"] for line in logged if "eval_BLEU" in line]
    assert len(bleu) == 2
    assert bleu[0] < bleu[1]
    assert learned.metrics["evaluation"]["BLEU"] == bleu[1] > 25
    assert learned.metrics["evaluation"]["texts"] == 12
    card = (learned.model / "README.md").read_text("utf-8")
    assert "Translation on `source=text" in card
    assert f"| en | de | 12 | {max(bleu):.2f} |" in card


def test_the_figures_are_sacrebleus(
    world: dict[str, Any], learned: TrainingResult, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    rows = zip(*(Path(world["test"][code]).read_text().splitlines() for code in ("en", "de")), strict=True)
    lines = [json.dumps({"text_en": en, "text_de": de}) for en, de in rows]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    command = ["evaluate", "mt", "--model", str(learned.model), "--data", str(tmp_path / "data"), "--from", "en",
               "--to", "de", "--beam", "2", "--out", str(tmp_path / "out.jsonl"), "--json"]  # fmt: skip
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts, references = [w["mt"] for w in written], [w["ref"] for w in written]
    assert [w["src"] for w in written] == Path(world["test"]["en"]).read_text().splitlines()
    assert found["BLEU"] == pytest.approx(corpus_bleu(texts, [references]).score, abs=1e-3)
    assert found["chrF"] == pytest.approx(corpus_chrf(texts, [references]).score, abs=1e-3)
    assert "tok:13a" in found["BLEU_signature"] and "case:mixed" in found["BLEU_signature"]
    assert run(command[:-3]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"BLEU {found['BLEU']:.2f}  nrefs:1|case:mixed")


def test_lines_are_translated_in_their_order(
    model: MMBert, learned: TrainingResult, world: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Path(world["test"]["en"]).read_text().splitlines()
    assert run(["translate", world["test"]["en"], "--model", str(learned.model), "--to", "de", "--beam", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [w[0].text for w in Writer(model).write(lines, to="de", beam=1, batch_tokens=30)]
    command = [
        "translate",
        world["test"]["en"],
        "--model",
        str(learned.model),
        "--to",
        "de",
        "--beam",
        "3",
        "--nbest",
        "2",
    ]
    assert run([*command, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["source"] for a in answers] == lines
    for answer in answers:
        first, second = answer["texts"]
        assert first["score"] >= second["score"]
        assert first["text"] != second["text"]


def test_mistakes_are_told(learned: TrainingResult, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one dog\n")
    command = ["translate", str(tmp_path / "a.txt"), "--model", str(learned.model)]
    assert run([*command, "--to", "fr"]) == 2
    assert "does not write 'fr'" in capsys.readouterr().err
    assert run([*command, "--to", "de", "--beam", "1", "--nbest", "2"]) == 2
    assert "2 best of a beam of 1" in capsys.readouterr().err
    assert run(["caption", str(tmp_path / "a.txt"), "--model", str(learned.model), "--to", "de"]) == 2
    assert "no vision encoder" in capsys.readouterr().err


def test_scoring_takes_several_references() -> None:
    texts = ["a red dog runs here", "two cats"]
    references = [["the red dog runs here", "a red dog runs there"], ["two cats"]]
    found = score(texts, references)
    assert found["BLEU"] > score(texts, [r[:1] for r in references])["BLEU"]
    with pytest.raises(DataError, match="0 texts"):
        score([], [])


def test_unknown_measures_and_options_are_told_before_training(world: dict[str, Any], tmp_path: Path) -> None:
    for change, message in (
        ({"evaluation.measure": "translatoin"}, "translation"),
        ({"evaluation.options.beems": 2}, "beams|beam"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(load_recipe("translation", overrides(world, **change)), tmp_path / "run")
    assert not (tmp_path / "run" / "last").exists()


def test_a_model_that_does_not_write_says_so() -> None:
    tokenizer = train_tokenizer(["one dog"] * 3, vocab_size=300)
    network = tiny_network(vocab_size=len(tokenizer))
    with pytest.raises(UsageError, match="does not write"):
        Writer(MMBert(network, MMBertProcessor(tokenizer, network.config)))


def test_the_simple_encoder_writes_what_it_has_learned(world: dict[str, Any], tmp_path: Path) -> None:
    """A few sentences by heart, one prefix of each in turn, and then token by token until ``[STOP]``."""
    pairs = {"one dog": "ein Hund", "two cats": "zwei Katzen", "a red ball": "ein roter Ball", "snow": "Schnee"}
    paths = {code: str(tmp_path / f"few.{code}") for code in ("en", "de")}
    for code, texts in zip(("en", "de"), (list(pairs), list(pairs.values())), strict=True):
        Path(paths[code]).write_text("\n".join(texts) + "\n", encoding="utf-8")
    data = json.dumps({"source": "text", "paths": paths})
    changes = {
        "model.init": "null", "model.config.num_decoder_layers": 0, "model.config.max_position_embeddings": 48,
        "optimizer.lr_per_sample": "null", "optimizer.warmup_steps": 10, "optimizer.ema": 0,
        "components.pairs.options": "{sources: [en], targets: [de], images: false, prefixes: 8}",
        "data": data, "evaluation.data": data, "evaluation.measure": "translation", "evaluation.metric": "BLEU",
        "steps": 150, "evaluation.every": 150,
    }  # fmt: skip
    learned = train(load_recipe("masked-translation", overrides(world, **changes)), tmp_path / "run")
    assert learned.metrics["evaluation"]["beam"] == 1
    found = Writer(MMBert.from_pretrained(learned.model, device="cpu")).write(list(pairs))
    assert [best.text for (best,) in found] == list(pairs.values())
