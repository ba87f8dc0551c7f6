"""mmbert tokenizer train as a person runs it; what it writes is a tokenizer for transformers and for recipes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from mmbert.cli.main import run
from mmbert.data.text_files import language_of_file, texts_of_files
from mmbert.errors import UsageError
from mmbert.training.build import build_model, open_sources
from mmbert.training.recipe import load_recipe

EN = ["a red dog", "the ball in the snow", "two dogs run in the snow"]
DE = ["ein roter Hund", "der Ball im Schnee", "zwei Hunde laufen im Schnee"]


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("train.en").write_text("\n".join([*EN * 3, ""]), "utf-8")
    Path("more").mkdir()
    Path("more/train.de.gz").write_bytes(gzip.compress("\n".join(DE).encode()))
    return tmp_path


def test_files_and_folders_become_a_folder_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train.en", "more", "--vocab-size", "70", "--special", "[2de]", "--kind", "bpe", "--out", "tok"]
    assert run(["tokenizer", "train", *args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["language"] for row in report["languages"]] == ["de", "en"]
    assert [row["texts"] for row in report["languages"]] == [3, 3]
    loaded = AutoTokenizer.from_pretrained("tok")
    assert len(loaded) == report["entries"] <= 70
    assert loaded("the [2de] Hund").tokens()[0] == "[CLS]"
    assert loaded.convert_tokens_to_ids("[2de]") == report["entries"] - 1
    assert loaded.unk_token_id not in loaded(EN + DE)["input_ids"][0]
    assert run(["tokenizer", "train", *args]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_recipe_trains_one_and_uses_it(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    more = {"visual_size": 16, "region_feature_size": 4, "coordinate_frequencies": 1, "num_region_classes": 0}
    content = {
        "name": "mine", "steps": 1, "data": {"source": "text"},
        "model": {"config": sizes | more, "tokenizer": {"vocab_size": 300, "kind": "wordpiece", "temperature": 2}},
        "components": {"main": {"task": "pretraining", "objectives": {"mlm": {}}}},
    }  # fmt: skip
    Path("mine.yaml").write_text(yaml.safe_dump(content), "utf-8")
    Path("train.de").write_text("\n".join(DE), "utf-8")
    paths = "data.paths={en: short.en, de: train.de}"
    Path("short.en").write_text("\n".join(EN), "utf-8")
    assert run(["tokenizer", "train", "--recipe", "mine.yaml", "--set", paths, "--out", "tok"]) == 0
    said = capsys.readouterr().out
    assert said.strip().startswith("tok: wordpiece, ")
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip().startswith(("de ", "en "))}
    assert rows["de"][1:4] == ["3", "0.00", "%"]
    recipe = load_recipe("mine.yaml", [paths, "model.tokenizer.path=tok"])
    bert = build_model(recipe.model, open_sources(recipe), 1)
    assert bert.processor.tokenizer.get_vocab() == AutoTokenizer.from_pretrained("tok").get_vocab()
    assert bert.config.vocab_size == len(AutoTokenizer.from_pretrained("tok"))
    fresh = load_recipe("mine.yaml", [paths])
    trained = build_model(fresh.model, open_sources(fresh), 1).processor.tokenizer
    assert trained.tokenize("ein Hund") == bert.processor.tokenizer.tokenize("ein Hund")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no texts to train on"),
        (["none.txt"], "no such file or folder: none.txt"),
        (["klingonisch=train.en"], "not a language code"),
        (["train.en", "--set", "steps=3"], "--set changes a recipe"),
        (["train.en", "--vocab-size", "12"], "cannot train a tokenizer of 12 entries"),
        (["train.en", "--kind", "bytes"], "no tokenizer of kind 'bytes'"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenizer", "train", *args, "--out", "new"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [("train.de", "de"), ("de.txt", "de"), ("train.zh-Hant.gz", "zh-Hant"), ("notes.txt", "und"), ("wiki.doc", "und")],
)
def test_a_files_name_says_its_language(name: str, code: str) -> None:
    assert language_of_file(Path(name)) == code


def test_a_language_may_stand_before_a_file() -> None:
    assert texts_of_files(["fr=train.en", "train.en"]) == {"fr": EN * 3, "en": EN * 3}
    with pytest.raises(UsageError, match="no such file"):
        texts_of_files(["fr=none"])
