"""What each of several processes does in tests of distributed training (imported by the spawned processes)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import KnownRegions, picture, tiny_network

from mmbert.data.packing import Example, Label, collate
from mmbert.model.packed import PackedBatch
from mmbert.training.module import TrainingModule

OBJECTIVES: dict[str, dict[str, Any]] = {"m/mlm": {"weight": 0.7}, "m/itm": {}, "m/mvfr": {"weight": 2.0}, "m/mvrc": {}}
RNG = np.random.default_rng(0)
PICTURES = [picture(f"p{i}", 4, RNG) for i in range(4)]


def labelled(rank: int) -> list[Example]:
    """Labels fall unevenly: rank 1 has more of some and none of others."""
    here = np.zeros(1, dtype=np.int64)

    def token(*places: int) -> Label:
        return Label("mlm", "token", np.array(places), np.array(places) + 20)

    if rank == 0:
        return [
            Example(np.array([2, 4, 4, 3]), labels={"m/mlm": token(1)}),
            Example(
                np.array([2, 7, 3]),
                image=PICTURES[0].ref,
                masked=np.array([False, True, False, True]),
                labels={
                    "m/mvfr": Label("mvfr", "region", np.array([1, 3])),
                    "m/mvrc": Label("mvrc", "region", np.array([1])),
                },
            ),
        ]
    return [
        Example(
            np.array([2, 8, 9, 10, 3]),
            image=PICTURES[i].ref,
            labels={"m/mlm": token(1, 2, 3), "m/itm": Label("itm", "sequence", here, np.array([i % 2]))},
        )
        for i in (1, 2, 3)
    ]


def batch_of(*ranks: int) -> PackedBatch:
    return collate([e for rank in ranks for e in labelled(rank)], KnownRegions(PICTURES))


def module() -> TrainingModule:
    return TrainingModule(tiny_network(3, dtype=torch.float64).train(), OBJECTIVES)


def run_rank(rank: int, world: int, folder: str) -> None:
    """Gradients of one step under DistributedDataParallel, written by rank 0."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    store = torch.distributed.FileStore(str(Path(folder) / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    plain = module()
    parallel = torch.nn.parallel.DistributedDataParallel(plain, find_unused_parameters=True)
    loss = parallel(batch_of(rank))["loss"]
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    if rank == 0:
        gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        torch.save({"gradients": gradients, "loss": total / world}, Path(folder) / "result.pt")
    torch.distributed.destroy_process_group()
