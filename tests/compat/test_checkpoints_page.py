"""docs/checkpoints.md: its commands run and its recipes are put together, in this order, in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from originals import Sizes, answering_shapes, pretraining_shapes, random_state, settings, write_checkpoint, write_yaml
from starts import small_bert

from mmbert.cli.main import run
from mmbert.training.build import build_model
from mmbert.training.initialisation import InitReport
from mmbert.training.recipe import ModelRecipe, recipe_names

torch.set_num_threads(1)
PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files that the page speaks of, small."""
    monkeypatch.chdir(tmp_path)
    small_bert(tmp_path / "bert-base-uncased")
    state = random_state(pretraining_shapes())
    write_checkpoint(tmp_path / "vl-bert.model", state)
    write_checkpoint(tmp_path / "vqa.model", random_state(answering_shapes(Sizes(hidden=64, visual=64))))
    del state["vlbert.end_embedding.weight"]
    write_checkpoint(tmp_path / "partial.model", state)
    content = settings(PARTIAL_PRETRAIN="vl-bert.model")
    content["DATASET"][1]["TRAIN_ANNOTATION_FILE"] = "sentences.txt"
    content["TRAIN"] = {
        "BATCH_IMAGES": [8, 8], "END_EPOCH": 10, "LR": 1e-6, "OPTIMIZER": "AdamW", "LR_SCHEDULE": "triangle",
        "WD": 1e-4, "WARMUP": True, "WARMUP_STEPS": 16, "CLIP_GRAD_NORM": 10, "FP16": True,
    }  # fmt: skip
    write_yaml(tmp_path / "pretrain.yaml", content)
    (tmp_path / "sentences.txt").write_text("the dogs run\na red ball\n")
    (tmp_path / "answers.txt").write_text("yes\nno\ntwo dogs\n")
    (tmp_path / "my-pretraining.yaml").write_text(blocks("yaml")[0])
    return tmp_path


def test_the_commands_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "mmbert"
        assert run(arguments) == 0, (line, capsys.readouterr().err)
    extended = yaml.safe_load((folder / "recipe.yaml").read_text())["extends"]
    assert extended in recipe_names()
    assert (folder / "runs" / "mine" / "initialisation.json").is_file()


def test_the_heads_start_as_the_page_says(folder: Path) -> None:
    report = InitReport()
    recipe = ModelRecipe.model_validate(yaml.safe_load(blocks("yaml")[1])["model"])
    model = build_model(recipe, {}, 0, report).model
    assert set(model.heads) == {"answer", "region", "choice"}
    fresh = [name for name in report.fresh if name.startswith("heads.")]
    assert fresh == ["heads.answer.predictor.bias", "heads.region.predictor.bias", "heads.region.predictor.weight"]
