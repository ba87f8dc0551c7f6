"""Runs whose weights are shared out (FSDP2) are the runs of the whole model."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sharded import run_rank

from mmbert.errors import ConfigError
from mmbert.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]

IMPOSSIBLE = [
    ({"precision": "fp16"}, "no loss scaling over shards"),
    ({"optimizer": {"name": "muon"}}, "optimizer.name muon needs whole matrices; take adamw, adam, sgd"),
    ({"optimizer": {"lora": {}}}, "adapters are too small to be shared out"),
    ({"compile": True}, "are not compiled"),
    ({"parallel": "fdsp"}, "parallel"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE, ids=[m for _, m in IMPOSSIBLE])
def test_what_cannot_be_sharded_is_a_config_error(changes: dict[str, Any], message: str, recipe_of: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(**({"parallel": "fsdp"} | changes))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_all(folder: Path, recipes: dict[str, Recipe]) -> None:
    (folder / "recipes").mkdir()
    for number, (name, recipe) in enumerate(recipes.items()):
        assert f"{number}" == name[0], "they run in the order of their names"
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    torch.multiprocessing.start_processes(run_rank, args=(2, free_port(), str(folder)), nprocs=2, start_method="spawn")


def distance(one: Path, other: Path) -> float:
    """Largest difference between two files of tensors, by the largest number of each tensor."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max() / (second[k].abs().max() + 1e-9)) for k in first if len(first))


def log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_the_whole_model(recipe_of: MakeRecipe, photos: Path, tmp_path: Path) -> None:
    """Weights, averages, clipping, evaluation and checkpoints; and either kind goes on from the other's checkpoint."""
    common: dict[str, Any] = {
        "steps": 4, "save_every": 2, "accumulation": 2,
        "evaluation": {"data": str(photos), "every": 2, "query_bank": 3},
    }  # fmt: skip
    slow = {"name": "sgd", "lr": 0.02, "clip": 0.5}  # Adam's first steps would blow up what rounding leaves
    whole, shards = (recipe_of(**common, optimizer=slow, parallel=kind) for kind in ("ddp", "fsdp"))
    adam = recipe_of(**common, parallel="fsdp", activation_checkpointing=True)
    run_all(
        tmp_path,
        {"0-whole": whole, "1-shards": shards, "2-adam": adam, "3-from-2-adam": adam, "4-from-1-shards": whole,
         "5-from-0-whole": shards},
    )  # fmt: skip
    norms = [
        line["grad_norm"]
        for line in map(json.loads, (tmp_path / "0-whole" / "log.jsonl").read_text("utf-8").splitlines())
        if "loss" in line
    ]
    assert min(norms) > 0.5, "all steps are clipped"
    last = Path("last", "model.safetensors")
    state = Path("state", "checkpoint-4")
    for name in ("1-shards", "4-from-1-shards", "5-from-0-whole"):
        for file in (
            last,
            Path("best", "model.safetensors"),
            state / "model.safetensors",
            state / "average.safetensors",
        ):
            assert distance(tmp_path / name / file, tmp_path / "0-whole" / file) < 1e-5, (name, file)
        logs = [
            [
                line
                for line in map(json.loads, (tmp_path / one / "log.jsonl").read_text("utf-8").splitlines())
                if "grad_norm" in line
            ]
            for one in (name, "0-whole")
        ]
        assert [line["grad_norm"] for line in logs[0]] == pytest.approx(
            [line["grad_norm"] for line in logs[1]], rel=1e-5
        )
        measured = [
            json.loads((tmp_path / one / "metrics.json").read_text())["evaluation"] for one in (name, "0-whole")
        ]
        assert measured[0]["text_to_image"] == measured[1]["text_to_image"]
    for file in (last, state / "average.safetensors"):
        one, other = load_file(tmp_path / "3-from-2-adam" / file), load_file(tmp_path / "2-adam" / file)
        assert all(torch.equal(one[k], other[k]) for k in other), "bit by bit"
    optimizers = [
        torch.load(tmp_path / one / state / "optimizer.pt", weights_only=True) for one in ("0-whole", "1-shards")
    ]
    shapes = [[{k: v.shape for k, v in s.items() if v is not None} for s in o["state"].values()] for o in optimizers]
    assert shapes[0] == shapes[1]
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
