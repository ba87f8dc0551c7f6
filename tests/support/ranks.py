"""What each of several processes does in tests of distributed training (imported by the spawned processes)."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch
from tiny import KnownRegions, picture, tiny_network
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmbert.data.packing import Example, Label, collate
from mmbert.model.packed import PackedBatch
from mmbert.model.recompute import checkpoint_layers
from mmbert.training.module import TrainingModule
from mmbert.training.sharding import Sharded

INVARIANT: dict[str, dict[str, Any]] = {
    "m/mlm": {"weight": 0.7}, "n/mlm": {"per_sequence": True}, "m/itm": {}, "m/mvfr": {"weight": 2.0}, "m/mvrc": {},
    "c/proxy": {"image_weight": 0.5},
}  # fmt: skip
"""Objectives whose mean does not depend on how a step is cut into batches."""
OBJECTIVES = INVARIANT | {"c/itc": {}, "t/ttc": {"weight": 0.5}, "c/itm_hard": {"pairs": 3, "negatives": 2}}
GROUPS = torch.arange(0, 12, 2)
RNG = np.random.default_rng(0)
PICTURES = [picture(f"p{i}", 4, RNG) for i in range(6)]
HERE = np.zeros(1, dtype=np.int64)
WORLD, BATCHES = 2, 3


def labelled(rank: int, number: int) -> list[Example]:
    """Labels fall unevenly: process 1 has no contrast in its first batch, process 0 no pairs in its last."""
    rng = np.random.default_rng([rank, number])
    examples = []
    for _ in range(int(rng.integers(1, 5))):
        ids = rng.integers(4, 60, int(rng.integers(3, 9)))
        places = np.sort(rng.choice(len(ids), int(rng.integers(1, len(ids))), replace=False))
        labels = {f"{part}/mlm": Label("mlm", "token", places, rng.integers(4, 60, len(places))) for part in "mn"}
        examples.append(Example(ids, labels=labels))
    if (rank, number) != (0, 2):
        for i in range(1 + 2 * rank):
            labels = {"m/itm": Label("itm", "sequence", HERE, np.array([i % 2]))}
            if rank == number:
                labels |= {"m/mvfr": Label("mvfr", "region", np.array([1, 3]))}
                labels |= {"m/mvrc": Label("mvrc", "region", np.array([1]))}
            masked = np.array([False, True, False, True])
            shown = PICTURES[int(rng.integers(6))].ref
            examples.append(Example(rng.integers(4, 60, 4), image=shown, masked=masked, labels=labels))
    if (rank, number) != (1, 0):
        for group in rng.integers(0, 5, 3 + rank).tolist():
            examples.append(contrasted(rng.integers(4, 60, 3), group, None))
            if rng.random() < 0.7:
                examples.append(contrasted(np.array([2, 3]), group, int(rng.integers(6))))
    return examples


def contrasted(ids: np.ndarray, group: int, shown: int | None) -> Example:
    extra = {"is_image": np.array([shown is not None])}
    labels = {f"c/{n}": Label(n, "sequence", HERE, np.array([group]), extra) for n in ("itc", "proxy", "itm_hard")}
    if shown is None:
        labels["t/ttc"] = Label("ttc", "sequence", HERE, np.array([group]), extra)
    return Example(ids, image=None if shown is None else PICTURES[shown].ref, labels=labels)


def batch_of(*parts: tuple[int, int]) -> PackedBatch:
    """The batches (process, number) in one."""
    return collate([e for part in parts for e in labelled(*part)], KnownRegions(PICTURES))


def module(objectives: dict[str, dict[str, Any]] = OBJECTIVES) -> TrainingModule:
    """In double precision, without dropout; everywhere the same."""
    torch.manual_seed(5)
    return TrainingModule(tiny_network(3).train(), objectives, GROUPS).double()


def drop_out(made: TrainingModule, rate: float = 0.3) -> None:
    """Dropout in the layers."""
    for layer in made.model.trunk.encoder.layers:
        layer.dropout.p, layer.attention.dropout = rate, rate


def keep_inputs_alone(made: TrainingModule) -> Mock:
    """Activation checkpointing, as a recipe switches it on; what counts the layers that are run so."""
    checkpoint_layers(made.model)
    counting = Mock(wraps=checkpoint)
    made.model.trunk.encoder._gradient_checkpointing_func = partial(counting, use_reentrant=False)
    return counting


def step(made: Any, batches: list[PackedBatch], plain: TrainingModule, seed: int = 7) -> float:
    """Loss and gradients of one optimiser step over ``batches``, one after another."""
    torch.manual_seed(seed)
    total = 0.0
    for number, (batch, plans) in enumerate(zip(batches, plain.plan(batches), strict=True)):
        last = number == len(batches) - 1
        with nullcontext() if last or not hasattr(made, "no_sync") else made.no_sync():
            loss = made(batch, plans)["loss"]
            loss.backward()
        total += float(loss.detach())
    return total


def gradients(made: TrainingModule) -> dict[str, Tensor]:
    whole = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in whole.items()}


def run_rank(rank: int, world: int, folder: str) -> None:
    """Steps of one and of three batches under DistributedDataParallel and under FSDP2, written by rank 0.

    Under FSDP2 also with activation checkpointing (``again``), and one step of each with dropout (``dropped``).
    """
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    store = torch.distributed.FileStore(str(Path(folder) / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = {}
    kinds = [("ddp", 1), ("ddp", 3), ("fsdp", 1), ("fsdp", 3), ("fsdp again", 1), ("fsdp again", 3)]
    for kind, count in [*kinds, ("fsdp dropped", 1), ("fsdp dropped again", 1)]:
        plain = module()
        if "dropped" in kind:
            drop_out(plain)
        shards = Sharded(plain, torch.device("cpu")) if "fsdp" in kind else None
        counting = keep_inputs_alone(plain) if "again" in kind else Mock()
        made = plain if shards else torch.nn.parallel.DistributedDataParallel(plain, find_unused_parameters=True)
        loss = torch.tensor(step(made, [batch_of((rank, i)) for i in range(count)], plain, seed=7 + 100 * rank))
        torch.distributed.all_reduce(loss)
        if shards is not None:
            shards.clip()  # without a limit: averages what is not sharded
        found[f"{kind}{count}"] = {"gradients": gradients(plain), "loss": loss / world, "again": counting.call_count}
    if rank == 0:
        torch.save(found, Path(folder) / "result.pt")
    torch.distributed.destroy_process_group()
