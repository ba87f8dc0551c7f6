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
        (["--task", "pretraining", "--heads", "2"], "no tokenizer is named"),
        (["--to", "onnx"], "cannot convert to 'onnx'"),
        (["--to", "vlbert", "--task", "vqa"], "--task does not go with --to vlbert"),
        (["--to", "recipe", "--allow-partial"], "--allow-partial does not go with --to recipe"),
        (["--to", "recipe"], "hint: give the YAML file of VL-BERT or MM-BERT"),
        (["--to", "vlbert"], "hint: give a model folder, such as mmbert convert makes"),
        (["--config", "FOLDER"], "is a folder, not a YAML file"),
        (["--task", "pretraining", "--tokenizer", "words"], "say it: --heads N"),
        (["--task", "pretraining", "--heads", "2", "--tokenizer", "/no/where"], "no such folder or file"),
        (["--task", "pretraining", "--heads", "2", "--tokenizer", "FOLDER"], "nothing usable in it"),
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
    work: Path, tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    options = [{"words": str(work / "words"), "FOLDER": str(tmp_path / "empty")}.get(o, o) for o in options]
    assert convert(work / "small.model", *options, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_not_made_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, "--to", "recipe", "--out", tmp_path / "out.yaml") == 2
    assert f"{tmp_path} is a folder" in capsys.readouterr().err


def test_the_vocabulary_itself_can_be_given(work: Path, tmp_path: Path) -> None:
    named = ["--task", "pretraining", "--heads", 2]
    for number, given in enumerate((work / "words", work / "words" / "vocab.txt")):
        assert convert(work / "small.model", *named, "--tokenizer", given, "--out", tmp_path / str(number)) == 0
    one, other = ((tmp_path / str(number) / "tokenizer.json").read_text("utf-8") for number in range(2))
    assert one == other


def test_the_way_back_writes_as_many_tensors_and_no_file_over_another(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(work / "small.model", "--config", work / "pretrain.yaml", "--out", tmp_path / "öne model") == 0
    there = capsys.readouterr().out.rsplit(", ", 1)[1]
    assert convert(tmp_path / "öne model", "--to", "vlbert", "--out", tmp_path / "back.yaml") == 2
    assert "end the checkpoint's name in .model" in capsys.readouterr().err
    assert not list(tmp_path.glob("back*"))
    assert convert(tmp_path / "öne model", "--to", "vlbert", "--out", tmp_path / "zurück.model") == 0
    assert capsys.readouterr().out.rsplit(", ", 1)[1] == there
    assert (tmp_path / "zurück.yaml").is_file()
    (tmp_path / "öne model" / "conversion.json").unlink()  # as a model has none that was trained further
    assert convert(tmp_path / "öne model", "--to", "vlbert", "--out", tmp_path / "other.model") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'other.model'}: pretraining, {there}"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that nobody can write to")
def test_where_nothing_can_be_written_it_says_so(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(work / "small.model", "--config", work / "pretrain.yaml", "--out", tmp_path / "model") == 0
    settings_file = write_yaml(
        tmp_path / "c.yaml", settings() | {"DATASET": {"DATASET": "multi30k"}, "TRAIN": TRAINING}
    )
    for source, out, more in (
        (work / "small.model", "/proc/new", ["--config", work / "pretrain.yaml"]),
        (tmp_path / "model", "/proc/new.model", ["--to", "vlbert"]),
        (settings_file, "/proc/new.yaml", ["--to", "recipe"]),
    ):
        assert convert(source, "--out", out, *more) == 2
        assert f"cannot write {out}" in capsys.readouterr().err


TRAINING = {
    "BATCH_IMAGES": 4, "END_EPOCH": 1, "OPTIMIZER": "AdamW", "LR": 1e-6, "LR_SCHEDULE": "triangle", "WARMUP": False,
    "WD": 0.0, "CLIP_GRAD_NORM": 1,
}  # fmt: skip
