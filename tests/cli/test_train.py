"""`mmbert train` on a small folder of one's own: what it leaves behind, how it goes on, how it fails."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from colours import save_folder, write_metadata
from safetensors.torch import load_file
from stopping import stop_at

from mmbert import MMBert
from mmbert.cli.main import run
from mmbert.training.recipe import load_recipe

SHORT = ("epochs=null", "steps=4", "precision=fp32", "log_every=1")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``photos`` of twelve pictures, without splits, in the current folder."""
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def command(photos: Path, model_folder: Path) -> list[str]:
    return ["train", "retrieval", "--data", "photos", "--init", str(model_folder), "--out", "run", *SHORT]


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of four steps, measured after two and four on four of the twelve pictures; its folder and its JSON."""
    folder = tmp_path_factory.mktemp("trained")
    rows = save_folder(folder / "photos")
    write_metadata(
        folder / "photos", [r | {"split": "validation" if i % 3 == 0 else "train"} for i, r in enumerate(rows)]
    )
    args = ["train", "retrieval", "--data", str(folder / "photos"), "--init", str(model_folder)]
    with redirect_stdout(StringIO()) as out:
        assert (
            run([*args, "--out", str(folder / "run"), "--json", *SHORT, "evaluation.every=2", "optimizer.lr=3e-3"]) == 0
        )
    return folder / "run", json.loads(out.getvalue())


def logged(folder: Path = Path("run")) -> list[int]:
    """Steps with a loss, in the order of the log."""
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["step"] for line in lines if "loss" in line]


def test_best_and_last_are_models_with_all_that_belongs_to_them(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = trained
    beside = {"README.md", "recipe.yaml", "metrics.json", "versions.json"}
    for model in (folder / "best", folder / "last"):
        assert {path.name for path in model.iterdir()} >= beside | {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }
        assert MMBert.from_pretrained(model, device="cpu").encode_text("rot").shape == (1, 8)
    assert {path.name for path in folder.iterdir()} >= beside - {"README.md"} | {"log.jsonl"}
    assert json.loads((folder / "metrics.json").read_text())["evaluation"] == answer["evaluation"]
    assert (answer["model"], answer["folder"]) == (str(folder / "best"), str(folder))
    assert answer["skipped"] == []
    assert set(answer["evaluation"]["text_to_image"]) == {"mean", "ar", "de", "en", "fr"}


def test_the_card_says_what_was_done_and_measured(
    trained: tuple[Path, dict[str, Any]], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, answer = trained
    card = (folder / "best" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["language"] == ["ar", "de", "en", "fr"]
    photos = folder.parent / "photos"
    for said in (
        "4 steps, seed 1;",
        f"Started from `{model_folder}`",
        f"task retrieval, data `{photos}`, objectives itc, itm_hard",
        f"Retrieval on `source=folder root={photos} split=validation` (embed)",
        f"| de | {100 * answer['evaluation']['text_to_image']['de']['R@1']:.1f} |",
    ):
        assert said in card
    assert run(["info", str(folder / "best")]) == 0
    printed = capsys.readouterr().out
    assert f"on source=folder root={photos} split=validation" in printed
    assert f"R@1 {100 * answer['evaluation']['text_to_image']['mean']['R@1']:.1f} %" in printed


def test_a_run_of_epochs_says_so_and_claims_no_figures(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "epochs=1.5", "steps=null", "min_steps=1"]) == 0
    assert capsys.readouterr().out.startswith("model: run/last  (")
    card = Path("run/last/README.md").read_text(encoding="utf-8")
    assert "1.5 epochs, seed 1;" in card
    assert "Measured" not in card
    assert "None" not in card
    assert not Path("run/best").exists(), "there was nothing to judge by"


def test_settings_on_the_command_line_win_over_the_recipe(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    shipped, used = load_recipe("retrieval"), load_recipe(str(folder / "recipe.yaml"))
    assert (used.steps, used.epochs, used.optimizer.lr, used.evaluation.every) == (4, None, 3e-3, 2)
    assert (shipped.optimizer.lr, shipped.epochs) != (3e-3, None)
    assert used.optimizer.model_copy(update={"lr": shipped.optimizer.lr}) == shipped.optimizer
    assert used.components == shipped.components
    assert logged(folder) == [1, 2, 3, 4]


def test_an_interrupted_run_goes_on_by_the_same_command(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, "save_every=2"]
    with monkeypatch.context() as patch:
        stop_at(3, patch, KeyboardInterrupt)
        assert run(command) == 130
    assert "interrupted; the same command goes on from checkpoint-2" in capsys.readouterr().err
    assert not Path("run/last").exists()
    done = Path("run/log.jsonl").read_text(encoding="utf-8")
    assert logged() == [1, 2]
    assert run([*command, "--resume"]) == 0
    assert Path("run/log.jsonl").read_text(encoding="utf-8").startswith(done), "begun anew"
    assert logged() == [1, 2, 3, 4]
    resumed = load_file("run/last/model.safetensors")
    assert run([*command, "--out", "undisturbed"]) == 0
    undisturbed = load_file("undisturbed/last/model.safetensors")
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())

    capsys.readouterr()
    assert run([*command, "optimizer.lr=1e-3"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == (
        "mmbert: error: this folder holds a run of another recipe: optimizer.lr was 0.0001, is 0.001 [run]"
    )
    assert "--no-resume" in hint
    assert run([*command, "optimizer.lr=1e-3", "--no-resume"]) == 0
    assert logged() == [1, 2, 3, 4]


@pytest.mark.slow
def test_ten_images_are_enough_for_the_recipe_as_it_is(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "photos", 10)
    assert run(["train", "retrieval", "--data", "photos", "--init", str(model_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "runs/retrieval/last"
    lines = map(json.loads, Path("runs/retrieval/log.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    # A random model of width 16 learns little in 120 gentle steps, but its loss falls (whatever the precision).
    assert sum(losses[-3:]) < 0.92 * sum(losses[:3])
    assert run(["evaluate", "retrieval", "--model", "runs/retrieval/last", "--data", "photos"]) == 0


@pytest.mark.parametrize("count", [1, 2, 9])
def test_fewer_images_train_too(
    count: int, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "photos", count)
    assert run(["train", "retrieval", "--data", "photos", "--init", str(model_folder), "--out", "run", *SHORT]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, Path("run/last")))
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert not torch.equal(before["embedding_head.text.weight"], after["embedding_head.text.weight"].float())


MISTAKES = [
    (["retreival"], [], "no recipe 'retreival'", "did you mean 'retrieval'?"),
    (["retrieval"], ["steps"], "'steps' is not NAME=VALUE", "such as steps=100"),
    (["retrieval"], ["steps=many"], "steps: Input should be a valid integer", ""),
    (["retrieval"], ["optimizr.lr=1"], "unknown key 'optimizr' [retrieval]", "did you mean 'optimizer'?"),
    (
        ["retrieval"],
        ["components.pairs.task=retreival"],
        "unknown name 'retreival' in tasks",
        "did you mean 'retrieval'?",
    ),
    (["retrieval"], ["augment.rotat=3"], "unknown option 'rotat' of augment", "did you mean 'rotate'?"),
    (["retrieval", "--data", "fotos"], [], "no such folder [fotos]", "give the folder"),
    (["retrieval", "--data", "photos:trian"], [], "no record is in split 'trian'", "the folder states no splits"),
    (["retrieval", "--init", "startr"], [], "no such model [startr]", "starter"),
]


@pytest.mark.parametrize(("args", "overrides", "message", "hint"), MISTAKES, ids=[m for _, _, m, _ in MISTAKES])
def test_mistakes_are_told_and_leave_no_folder(
    args: list[str], overrides: list[str], message: str, hint: str, command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(["train", args[0], *command[2:], *args[1:], *overrides]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    error, *hints = said.err.splitlines()
    assert error.startswith(f"mmbert: error: {message}")
    assert hint in "".join(hints)
    assert [path.name for path in Path().iterdir()] == ["photos"]


def test_a_mistake_costs_no_earlier_model(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert run([*command, "--data", "fotos"]) == 2
    Path("photos/metadata.jsonl").write_text('{"file_name": "red.png", "caption": ""}\n', encoding="utf-8")
    assert run(command) == 2
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_folder_without_anything_to_train_on_says_so(
    photos: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    write_metadata(photos, [row | {"split": "test"} for row in rows])
    assert run(command) == 2
    assert "every record is in a split that is not trained on" in capsys.readouterr().err
    (photos / "metadata.jsonl").unlink()
    assert run(command) == 2
    assert "none of the 12 records can be used here [pairs]" in capsys.readouterr().err, "no captions"
    assert not Path("run").exists()
