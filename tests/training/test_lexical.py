"""Words that only the picture decides: a small model learns to look, and is told apart from one that does not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmbert.api.front_door import MMBert
from mmbert.cli.main import run
from mmbert.training.recipe import load_recipe
from mmbert.training.run import TrainingResult, train

torch.set_num_threads(1)
COLOURS = {"red": (210, 40, 40), "blue": (40, 40, 210)}
MEANS = {"bank": {"red": "ufer", "blue": "geldhaus"}, "seal": {"red": "siegel", "blue": "robbe"}}
SIZES = {"train": 24, "validation": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour in many shades; the sentence is always the same, the colour decides the translation."""
    folder, rng, rows = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), []
    for split, count in SIZES.items():
        for number in range(count):
            word, colour = list(MEANS)[number % 2], list(COLOURS)[number // 2 % 2]
            shade = np.clip(np.array(COLOURS[colour]) + rng.integers(-30, 31, 3), 0, 255).astype(np.uint8)
            name = f"{split}-{number}.png"
            Image.fromarray(np.broadcast_to(shade, (48, 48, 3)).copy()).save(folder / name)
            words = {"word_en": word, "word_de": MEANS[word][colour]}
            rows.append({"file_name": name, "caption_en": f"there is a {word}", "split": split, **words})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def learned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    settings: dict[str, Any] = {
        "data": str(folder), "steps": 50, "epochs": "null", "evaluation.every": 25, "log_every": 10,
        "components.words.options.images": "true", "components.words.records": 12,
        "optimizer": "{lr: 0.01, ema: 0.8}",
        "model.tokenizer.vocab_size": 300, "model.config.hidden_size": 32, "model.config.visual_size": 32,
        "model.config.num_attention_heads": 2, "model.config.visual_scale_object_init": 1.0,
        "model.config.visual_scale_text_init": 1.0, "model.config.hidden_dropout_prob": 0.0,
        "model.config.vision": "{kind: grid, backbone: test_vit, image_size: 64}",
    }  # fmt: skip
    recipe = load_recipe("lexical-translation-small", [f"{key}={value}" for key, value in settings.items()])
    return train(recipe, tmp_path_factory.mktemp("run") / "run")


def test_the_picture_decides_where_the_text_cannot(learned: TrainingResult) -> None:
    found = learned.metrics["evaluation"]
    assert found["with_image"] == 1.0
    assert found["without_image"] <= 0.5 + 1e-9
    assert found["majority"] == 0.5  # both meanings of a word are as frequent
    card = (learned.model / "README.md").read_text("utf-8")
    assert "| 12 | 100.0 | " in card


def test_the_command_reports_both_and_each_word(
    learned: TrainingResult, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "mlt", "--model", str(learned.model), "--data", f"{folder}:validation"]
    assert run([*command, "--json", "--report", str(tmp_path / "words.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["with_image"], found["items"], found["unseen"]["items"]) == (1.0, 12, 0)
    rows = list(csv.DictReader((tmp_path / "words.csv").read_text("utf-8").splitlines()))
    assert {row["word"]: (row["items"], row["with_image"], row["majority"]) for row in rows} == {
        "bank": ("6", "1.0", "0.5"), "seal": ("6", "1.0", "0.5"),
    }  # fmt: skip
    assert run([*command, "--no-image", "--report", str(tmp_path / "words.md")]) == 0
    printed = capsys.readouterr().out
    assert "with image" not in printed.replace("without image", "")
    assert "most frequent translation" in printed
    assert (tmp_path / "words.md").read_text("utf-8").startswith("| word | language | items |")
    assert run([*command, "--report", str(tmp_path / "words.txt")]) == 2
    assert "end the name in .csv, .json or .md" in capsys.readouterr().err


def test_rows_are_counted_in_the_form_that_the_model_was_trained_to_answer(
    learned: TrainingResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dictionary forms are given, others stand in the sentences: with a model's own rows nothing changes."""
    rows = [
        {"caption_en": f"{word} there", "caption_de": f"dort {form}", "word_en": word, "word_de": given}
        for word, given, form in (("bank", "ufer", "ufern"), ("bank", "geldhaus", "haus"), ("seal", "robbe", "robben"))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row | {"split": "test"}) for row in rows), "utf-8")
    bert = MMBert.from_pretrained(learned.model, device="cpu")
    head = bert.config.heads["lexical"]  # type: ignore[index]
    counts = {"bank": {"ufern": {"ufer": 1}, "geldhaus": {"geldhaus": 1}}, "seal": {"robben": {"robbe": 1}}}
    head |= {"answers": "occurring", "labels": ["geldhaus", "robben", "siegel", "ufern"], "lexicon": {"de": counts}}
    bert.save_pretrained(tmp_path / "model")
    command = ["evaluate", "mlt", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--json"]
    assert run(command) == 0
    own = json.loads(capsys.readouterr().out)
    assert run([*command, "--train", str(tmp_path / "rows.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out) == own


def test_a_head_with_other_words_starts_anew_on_a_loaded_model(
    learned: TrainingResult, folder: Path, tmp_path: Path
) -> None:
    """Words of the new rows become outputs; the trunk goes on from where it was."""
    (tmp_path / "words.txt").write_text("ufer\ngeldhaus\nsiegel\nrobbe\nmeer\n", "utf-8")
    settings = [
        f"data={folder}", f"model={{init: {learned.model}}}", "steps=1", "epochs=null", "evaluation.every=null",
        "components.words.options.images=true", f"components.words.options.words={tmp_path / 'words.txt'}",
        "optimizer={lr: 1.0e-9}",
    ]  # fmt: skip
    result = train(load_recipe("lexical-translation-small", settings), tmp_path / "run")
    before, after = (
        MMBert.from_pretrained(learned.model, device="cpu"),
        MMBert.from_pretrained(result.model, device="cpu"),
    )
    assert after.config.heads["lexical"]["labels"] == ["ufer", "geldhaus", "siegel", "robbe", "meer"]  # type: ignore[index]
    assert after.model.heads["lexical"].predictor.weight.shape[0] == 5
    words = "trunk.embeddings.words.weight"
    assert torch.allclose(before.model.state_dict()[words], after.model.state_dict()[words], atol=1e-3)
