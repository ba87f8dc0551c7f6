"""Train by a recipe in several processes, on one or several machines."""

from __future__ import annotations

from typing import Annotated

import typer

from mmbert.cli.common import note
from mmbert.cli.train import read_arguments

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def launch(
    context: typer.Context,
    nproc: Annotated[int, typer.Option("--nproc", "-n", min=1, help="Processes on this machine: one per GPU.")] = 1,
    nnodes: Annotated[str, typer.Option("--nnodes", help="Machines, or MIN:MAX.")] = "1",
    rdzv: Annotated[
        str | None, typer.Option("--rdzv", metavar="HOST:PORT", help="Where the machines meet: one of them.")
    ] = None,
    job: Annotated[str, typer.Option("--job", help="A name that all machines of a run give.")] = "mmbert",
) -> None:
    """Train by a recipe in several processes, on one or several machines.

    Everything that `mmbert train` takes stands behind. The gradient is that of all processes' labels together, however
    unevenly they fall. Several machines need a common file system for the run's folder; call the same command on each.

    Examples:

      mmbert launch --nproc 4 retrieval --data my-photos
      mmbert launch --nproc 8 --nnodes 2 --rdzv node1:29500 pretraining --data corpus --out /shared/run
    """
    from mmbert.training.launch import launch as start

    if rdzv is not None:
        note(f"{nnodes} machines meet at {rdzv}; this one waits for the others")
    _, folder = read_arguments(context.args)  # a mistake in the recipe is said once, not by each process
    start(context.args, processes=nproc, nodes=nnodes, rendezvous=rdzv, job=job, folder=folder)
