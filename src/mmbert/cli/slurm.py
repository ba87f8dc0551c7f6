"""Write (and submit) a SLURM script that trains by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli.common import note, output_path
from mmbert.cli.train import read_arguments

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def slurm(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships with mm-bert, or a YAML file.")],
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs (and processes) on each; 0: CPUs only.")] = 1,
    hours: Annotated[float, typer.Option("--hours", min=0.1, help="Time limit.")] = 24.0,
    notice: Annotated[int, typer.Option("--notice", min=1, help="Seconds before it to write a checkpoint in.")] = 180,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Per process.")] = 8,
    partition: Annotated[str | None, typer.Option("--partition", help="As the site names it.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="As the site names it.")] = None,
    setup: Annotated[str, typer.Option("--setup", help="Shell line that makes mmbert available.")] = "",
    script: Annotated[Path | None, typer.Option("--script", help="File to write. Default: RECIPE.sbatch")] = None,
    submitted: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch at once.")] = False,
) -> None:
    """Write (and submit) a SLURM script that trains by a recipe.

    What `mmbert train` takes stands behind. At the time limit and when the job is preempted the run writes a
    checkpoint, the job goes back into the queue, and then goes on from there.

    Examples:

      mmbert slurm retrieval --nodes 2 --gpus 4 --data my-photos --out /shared/run
      mmbert slurm pretraining --gpus 8 --hours 4 --partition short --submit --data corpus
    """
    from mmbert.training.launch import Job, batch_script, submit

    arguments = [recipe, *context.args]
    name = read_arguments(arguments)[0].name
    job = Job(nodes, gpus, hours, notice, partition, account, cpus, setup)
    path = output_path(script or Path(f"{name}.sbatch"))
    path.write_text(batch_script(name, arguments, job), encoding="utf-8")
    note(f"wrote {path}")
    print(submit(path) if submitted else f"sbatch {path}")
