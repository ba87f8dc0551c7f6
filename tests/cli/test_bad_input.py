"""Bad images, rows, recipes and models: each command ends with one line that says what and where, and can skip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import save_folder, save_picture, write_metadata
from PIL import Image
from safetensors.torch import load_file, save_file

from mmbert.cli.main import run

PICTURES = ("red", "dark-red", "green", "dark-green", "blue", "dark-blue")
SHORT = ("steps=1", "epochs=null", "precision=fp32", "augment=null")

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good folder ``photos`` of twelve pictures in the current folder; line 5 of its metadata is about blue.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    save_folder(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def commands(model_folder: Path) -> dict[str, list[str]]:
    model = ["--model", str(model_folder)]
    return {
        "check": ["data", "check", "photos"],
        "train": ["train", "retrieval", "--data", "photos", "--init", str(model_folder), "--out", "run", *SHORT],
        "evaluate": ["evaluate", "retrieval", "--data", "photos", *model, "--html", "page.html"],
        "index": ["index", "photos", *model, "--out", "index"],
    }


def half_a_jpeg(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def missing_image(folder: Path, name: str) -> None:
    (folder / f"{name}.png").unlink()


def truncated_jpeg(folder: Path, name: str) -> None:
    half_a_jpeg(folder / f"{name}.jpg")
    (folder / f"{name}.png").unlink()
    in_line(folder, name, lambda row: row | {"file_name": f"{name}.jpg"})


def one_pixel(folder: Path, name: str) -> None:
    Image.new("RGB", (1, 1), "blue").save(folder / f"{name}.png")


def empty_caption(folder: Path, name: str) -> None:
    in_line(folder, name, lambda row: row | {"caption_de": " "})


def broken_json(folder: Path, name: str) -> None:
    """The line breaks off before its last bracket."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [line.rstrip("}") if f'"{name}.png"' in line else line for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_line(folder: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    rows: Rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    write_metadata(folder, [change(row) if row["file_name"] == f"{name}.png" else row for row in rows])


FAULTS: dict[Callable[[Path, str], None], str] = {
    missing_image: "no image {}.png",
    truncated_jpeg: "{}.jpg: damaged or cut short",
    one_pixel: "{}.png: image is 1x1, smaller than 2 pixels",
    empty_caption: "empty caption in column 'caption_de'",
    broken_json: "not valid JSON: Expecting ',' delimiter at character",
}


def error_of(args: list[str], capsys: pytest.CaptureFixture[str], *, says_nothing: bool = True) -> str:
    """Run a command that has to fail; its one line of reason without the program's name."""
    capsys.readouterr()
    assert run(args) == 2
    said = capsys.readouterr()
    assert not says_nothing or said.out == ""
    error, *hint = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
    assert error.startswith("mmbert: error: ")
    assert len(hint) <= 1
    assert all(line.startswith("hint: ") for line in hint)
    return error.removeprefix("mmbert: error: ") + "".join(f" ({line})" for line in hint)


@pytest.mark.parametrize("command", ["train", "evaluate", "index"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_line_with_the_reason_and_the_line_of_the_record(
    fault: Callable[[Path, str], None],
    command: str,
    photos: Path,
    commands: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(photos, "blue")
    reason = error_of(commands[command], capsys)
    assert reason.startswith(FAULTS[fault].format("blue"))
    assert "[metadata.jsonl:5]" in reason
    assert not Path("page.html").exists()
    assert not list(Path().glob("run/*/model.safetensors"))
    if command == "index":
        half = error_of(["search", "blau", "--index", "index"], capsys)
        assert half.startswith(("no such index [index]", "the index is not finished [index]"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_check_lists_the_fault_and_fails(
    fault: Callable[[Path, str], None],
    photos: Path,
    commands: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(photos, "blue")
    assert "1 broken record or image [metadata.jsonl:5]" in error_of(commands["check"], capsys, says_nothing=False)
    assert run([*commands["check"], "--json"]) == 2
    (broken,) = json.loads(capsys.readouterr().out)["broken"]
    assert broken["where"] == "metadata.jsonl:5"
    assert broken["reason"].startswith(FAULTS[fault].format("blue"))


@pytest.fixture
def spoilt(photos: Path) -> dict[str, str]:
    """Every fault at once, each in another line: where -> what."""
    for fault, name in zip(FAULTS, PICTURES, strict=False):
        fault(photos, name)
    return {
        f"metadata.jsonl:{number}": FAULTS[fault].format(name)
        for number, (fault, name) in enumerate(zip(FAULTS, PICTURES, strict=False), 1)
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "index"])
def test_faults_can_be_skipped_and_are_counted_and_listed(
    command: str, spoilt: dict[str, str], commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*commands[command], "--skip-bad"]) == 0
    said = capsys.readouterr()
    told = [line for line in said.err.splitlines() if "left out" in line]
    assert told[0] == "5 bad records left out"
    assert len(told) == 6
    for where, what in spoilt.items():
        assert any(line.startswith(f"left out: {where}: {what}") for line in told[1:]), where
    left = {"train": "model: run/last", "evaluate": "photos: 7 images", "index": "index: 7 added, 5 left out"}
    assert left[command] in said.out


@pytest.mark.parametrize("command", ["train", "evaluate", "index"])
def test_programs_get_the_list_of_what_was_skipped(
    command: str, spoilt: dict[str, str], commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*commands[command], "--skip-bad", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    left_out = {entry["where"]: entry["reason"] for entry in answer["skipped" if command == "train" else "left_out"]}
    assert left_out.keys() == spoilt.keys()
    assert all(left_out[where].startswith(what) for where, what in spoilt.items())


def test_the_check_counts_what_others_would_skip(
    spoilt: dict[str, str], commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*commands["check"], "--skip-bad"]) == 0
    said = capsys.readouterr()
    assert "5 broken records or images: left out by commands with --skip-bad" in said.err
    assert all(where in said.out for where in spoilt)


def test_a_folder_of_nothing_but_faults_is_an_error_even_when_skipping(
    photos: Path, commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in photos.glob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    for command, message in {
        "train": "no usable record; the first: red.png: not an image",
        "evaluate": "none of the images can be opened",
        "index": "none of the images can be used",
    }.items():
        assert error_of([*commands[command], "--skip-bad"], capsys).startswith(message)
    assert not Path("run").exists()


def test_images_of_the_validation_split_are_checked_before_the_first_step(
    photos: Path, commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    in_line(photos, "red", lambda row: row | {"split": "validation"})
    in_line(photos, "green", lambda row: row | {"split": "validation"})
    truncated_jpeg(photos, "green")
    assert "green.jpg: damaged or cut short: the file has no end mark [metadata.jsonl:3]" in error_of(
        commands["train"], capsys
    )
    assert not Path("run").exists()
    assert run([*commands["train"], "--skip-bad"]) == 0
    assert "1 bad record left out\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (half_a_jpeg, "damaged or cut short"),
        (lambda path: Image.new("RGB", (1, 1)).save(path), "image is 1x1"),
        (lambda path: path.unlink(), "no such file"),
    ],
    ids=["truncated", "one pixel", "missing"],
)
def test_images_to_embed_are_named(
    spoil: Callable[[Path], None], message: str, model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save_picture(photos / "violet.jpg", "purple")
    spoil(image)
    reason = error_of(["embed", str(image), "--model", str(model_folder), "--out", "vectors.npy"], capsys)
    assert message in reason
    assert f"[{image}]" in reason
    assert not Path("vectors.npy").exists()


def test_an_empty_line_to_embed_is_named(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("captions.txt").write_text("rot\n\nblau\n", encoding="utf-8")
    args = ["embed", "--text", "captions.txt", "--model", str(model_folder), "--out", "vectors.npy"]
    assert error_of(args, capsys).startswith("empty line [captions.txt:2]")
    assert not Path("vectors.npy").exists()


def test_an_unknown_recipe_key_suggests_the_nearest(
    commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    reason = error_of([*commands["train"], "optimizer.wieght_decay=0"], capsys)
    assert reason == "unknown key 'optimizer.wieght_decay' [retrieval] (hint: did you mean 'weight_decay'?)"
    Path("mine.yaml").write_text("extends: retrieval\nevalution: {every: 3}\n", encoding="utf-8")
    reason = error_of(["train", "mine.yaml", *commands["train"][2:]], capsys)
    assert reason == "unknown key 'evalution' [mine.yaml] (hint: did you mean 'evaluation'?)"
    Path("mine.yaml").write_text("extends: retrieval\nseed: [1\n", encoding="utf-8")
    assert "[mine.yaml:3]" in error_of(["train", "mine.yaml", *commands["train"][2:]], capsys)
    assert not Path("run").exists()


def another_width(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"match_head.weight": torch.zeros(1, 24)}, folder / "model.safetensors", {"format": "pt"})


def another_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))


@pytest.mark.parametrize("command", ["train", "evaluate", "index", "embed"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_width, "match_head.weight ([1, 24] instead of [1, 16])"),
        (another_layer, "trunk.encoder.layers.1."),
    ],
    ids=["shape", "layers"],
)
def test_a_checkpoint_of_another_shape_names_the_folder_and_the_weight(
    spoil: Callable[[Path], None],
    message: str,
    command: str,
    commands: dict[str, list[str]],
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(model_folder, "other")
    spoil(Path("other"))
    commands["embed"] = ["embed", "photos", "--model", str(model_folder), "--out", "vectors.npy"]
    args = ["other" if arg == str(model_folder) else arg for arg in commands[command]]
    reason = error_of(args, capsys)
    assert reason.startswith("weights do not fit the configuration: ")
    assert message in reason
    assert "[other]" in reason
    assert "config.json and model.safetensors must come from the same model" in reason
    assert sorted(path.name for path in Path().iterdir()) == ["other", "photos"], "nothing was made"
