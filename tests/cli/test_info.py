"""`mmbert info`: what a model folder says about itself, and damaged folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmbert.cli.common import find_model
from mmbert.cli.info import describe, read_header
from mmbert.cli.main import run
from mmbert.errors import CheckpointError

CARD = """---
license: cc-by-4.0
language: [de, fa]
---
# A model
"""
MEAN = {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0, "median_rank": 1.5}
METRICS = {
    "data": {"source": "starter", "split": "validation"},
    "evaluation": {"text_to_image": {"mean": MEAN, "de": MEAN}, "image_to_text": {"mean": MEAN, "de": MEAN}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"model_type": "mmbert", "hidden_size": 8, "num_hidden_layers": 2, "vision": {"kind": "grid"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 1}}}))
    tensors = {
        "trunk.encoder.layers.0.weight": torch.zeros(8, 8),
        "trunk.embeddings.words.weight": torch.zeros(10, 8, dtype=torch.bfloat16),
        "mlm_head.bias": torch.zeros(10),
        "logit_scale": torch.zeros(()),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_sizes_come_from_the_files(folder: Path) -> None:
    facts = describe(folder)
    assert facts["parameters"] == {"total": 155, "embeddings": 80, "encoder": 64, "mlm_head": 10, "logit_scale": 1}
    assert facts["dtypes"] == {"F32": 75, "BF16": 80}
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert facts["shape"] == {"hidden_size": 8, "num_hidden_layers": 2}
    assert facts["tokenizer"] == {"type": "WordPiece", "vocabulary": 2}


def test_a_model_as_it_is_saved(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmbert import MMBert

    facts = describe(model_folder)
    counted = sum(weight.numel() for weight in MMBert.from_pretrained(model_folder).model.state_dict().values())
    assert facts["parameters"]["total"] == pytest.approx(counted, rel=0.05)  # tied weights are stored once
    assert {"vision", "encoder"} <= set(facts["parameters"])
    assert facts["model_type"] == "mmbert"
    assert run(["info", str(model_folder)]) == 0
    assert "grid: backbone test_vit, image_size 160" in capsys.readouterr().out


def test_licence_and_languages_come_from_the_card_results_from_the_metrics(folder: Path) -> None:
    facts = describe(folder)
    assert facts["license"] == "cc-by-4.0"
    assert facts["languages"] == ["de", "fa"]
    assert facts["results"] == METRICS


def test_printed_for_people_and_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    for part in ("155", "cc-by-4.0", "2: de fa", "WordPiece, 2 tokens", "on source=starter split=validation"):
        assert part in out
    assert "text to image: R@1 50.0 %, R@5 75.0 %, R@10 100.0 %, median rank 1.5\n" in out
    assert run(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["total"] == 155


def test_a_model_of_the_hub_comes_with_its_card(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")

    def download(name: str, allow_patterns: list[str]) -> str:
        copy = tmp_path_factory.mktemp(name.replace("/", "-"))
        for file in folder.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                (copy / file.name).write_bytes(file.read_bytes())
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    fetched = find_model("someone/some-model")
    assert describe(fetched)["license"] == "cc-by-4.0"
    assert not (fetched / "pytorch_model.bin").exists()


def test_the_folder_of_a_training_run_points_to_its_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = folder.parent / f"{folder.name}-run"
    run_folder.mkdir()
    folder.rename(run_folder / "best")
    assert run(["info", str(run_folder)]) == 2
    assert f"its model is {run_folder / 'best'}" in capsys.readouterr().err


def test_a_folder_without_card_and_tokenizer_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").unlink()
    (folder / "tokenizer.json").unlink()
    assert run(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "licence     not said" in out
    assert "tokenizer   none" in out


def test_a_cut_off_file_is_noticed_without_loading_it(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="promises") as caught:
        describe(folder)
    assert caught.value.where == str(path)
    for cut in (0, 5, 8, 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cut off"):
            read_header(path)
    path.write_bytes(whole[:8] + b"x" + whole[9:])
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "cannot read"),
        ("config.json", "[]", "not a JSON object"),
        ("model.safetensors", None, "no weights"),
        ("metrics.json", "oops", "cannot read"),
        ("README.md", "---\nlicense: [\n---\n", "YAML"),
    ],
)
def test_incomplete_and_damaged_folders(
    folder: Path, name: str, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    assert run(["info", str(folder)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
