"""Whole training runs on two processes, sharded and not (imported by the spawned processes)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import yaml

from mmbert.training.recipe import check_recipe
from mmbert.training.run import train


def run_rank(rank: int, world: int, port: int, folder: str) -> None:
    """The runs that ``recipes`` in the folder names, one after the other.

    One that is named ``A-from-B`` goes on with the run B from its checkpoint of step 2.
    """
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    base = Path(folder)
    for path in sorted((base / "recipes").glob("*.yaml")):
        name, _, begun = path.stem.partition("-from-")
        if begun and rank == 0:
            shutil.copytree(base / begun, base / path.stem)
            shutil.rmtree(base / path.stem / "state" / "checkpoint-4")
        if begun:
            torch.distributed.barrier()
        train(check_recipe(yaml.safe_load(path.read_text("utf-8")), where=name), base / path.stem)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
