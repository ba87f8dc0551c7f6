"""`mmbert convert`: what it takes, prints and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import (
    pretraining_shapes,
    random_state,
    settings,
    write_checkpoint,
    write_vocabulary,
    write_yaml,
)
from torch import Tensor

from mmbert.cli.main import run


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its YAML file and its vocabulary in one folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_vocabulary(folder / "words")
    write_yaml(folder / "pretrain.yaml", settings())
    write_checkpoint(folder / "small.model", random_state(pretraining_shapes()), optimizer={"state": {}}, epoch=3)
    return folder


@pytest.fixture
def state(work: Path) -> dict[str, Tensor]:
    return torch.load(work / "small.model", weights_only=True)["state_dict"]


def convert(*arguments: Any) -> int:
    return run(["convert", *map(str, arguments)])


def test_with_a_yaml_file(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(work / "small.model", "--config", work / "pretrain.yaml", "--out", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}: pretraining, {len(pretraining_shapes())} tensors\n"
    assert err.splitlines() == ["left out: optimizer", "left out: epoch"]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_one_and_back(
    work: Path, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inferred = ["--task", "pretrain", "--tokenizer", work / "words", "--heads", 2]
    assert convert(work / "small.model", *inferred, "--out", tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "out": str(tmp_path / "out"), "task": "pretraining", "used": len(pretraining_shapes()),
        "missing": [], "leftover": [], "beside": ["optimizer", "epoch"],
    }  # fmt: skip
    assert convert(tmp_path / "out", "--to", "vlbert", "--out", tmp_path / "back.model") == 0
    back = torch.load(tmp_path / "back.model", weights_only=True)["state_dict"]
    assert list(back) == list(state)
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_what_does_not_fit_is_an_error_unless_it_is_allowed(
    work: Path, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del state["vlbert.pooler.dense.bias"]
    path = write_checkpoint(tmp_path / "partial.model", state | {"strange": torch.ones(2)})
    arguments = (path, "--config", work / "pretrain.yaml", "--out", tmp_path / "out")
    assert convert(*arguments) == 2
    err = capsys.readouterr().err
    assert "1 missing: vlbert.pooler.dense.bias; 1 left over: strange" in err
    assert "hint: " in err
    assert not (tmp_path / "out").exists()
    assert convert(*arguments, "--allow-partial") == 0
    assert capsys.readouterr().err.splitlines() == [
        "made at random: vlbert.pooler.dense.bias", "left out: strange",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "pretraning"], "did you mean 'pretraining'"),
        (["--task", "vqa", "--tokenizer", "words"], "no tensor 'final_mlp.1.weight'"),
        ([], "which network is it"),
        (["--task", "pretraining"], "no tokenizer is named"),
        (["--to", "onnx"], "cannot convert to 'onnx'"),
        (["--to", "vlbert", "--task", "vqa"], "--task does not go with --to vlbert"),
        (["--to", "recipe", "--allow-partial"], "--allow-partial does not go with --to recipe"),
        (["--to", "recipe"], "not valid YAML"),
        (["--to", "vlbert"], "no model here"),
        (["--config", "pretrain.yaml", "--heads", "2"], "--heads does not go with --config"),
        (["--config", "nowhere.yaml"], "no such configuration"),
        (["--task", "pretraining", "--heads", "0", "--tokenizer", "words"], "num_attention_heads is at least 1, not 0"),
        (
            ["--task", "pretraining", "--heads", "-4", "--tokenizer", "words"],
            "num_attention_heads is at least 1, not -4",
        ),
        (["--task", "pretraining", "--heads", "3", "--tokenizer", "words"], "not a multiple of num_attention_heads"),
    ],
)
def test_what_cannot_be_done_is_said(
    work: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(work / "words") if o == "words" else o for o in options]
    assert convert(work / "small.model", *options, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_not_made_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, "--to", "recipe", "--out", tmp_path / "out.yaml") == 2
    assert f"{tmp_path} is a folder" in capsys.readouterr().err
