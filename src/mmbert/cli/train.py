"""Train a model by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli._recipes import print_recipes, shipped_recipes
from mmbert.cli._runs import current_stage
from mmbert.cli._tables import note_left_out
from mmbert.cli.common import JsonOption, SkipBadOption, note, print_json, silence_libraries
from mmbert.errors import TrainingStopped, UsageError

if TYPE_CHECKING:
    from mmbert.training.recipe import Recipe


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe that ships with mm-bert, or a YAML file.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A folder with captions (or FOLDER:SPLIT) to train on.")
    ] = None,
    features: Annotated[
        str | None, typer.Option("--features", help="A region store in which images are looked up.")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="Model to start from: 'starter', a model folder or a hub id.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder. Default: runs/RECIPE.", show_default=False)
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List the recipes; with a word instead of RECIPE those about it.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run in the same folder.")] = True,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model by a recipe.

    The run's folder holds the models best/ (where there was validation data) and last/, the resolved recipe, versions,
    metrics, log.jsonl, TensorBoard logs and, under state/, checkpoints to go on from. SIGTERM or SIGUSR1 ends it after
    the step, with a checkpoint and exit code 75. Several processes: mmbert launch, mmbert slurm.

    Examples:

      mmbert train --list
      mmbert train starter
      mmbert train retrieval --data my-photos --init starter --out runs/my-photos
      mmbert train retrieval --data my-photos epochs=5 optimizer.lr=3e-5
      mmbert train pretraining --data my-photos --features my-photos.regions
      mmbert train mm-bert-retrieval-de data.root=multi30k --features flickr30k.regions
    """
    if show_list:
        found = shipped_recipes(recipe)
        print_json(found) if as_json else print_recipes(found, short=recipe is None)
        return
    loaded, folder = _chosen(recipe, overrides, data, features, init, out)
    from mmbert.model import ranks
    from mmbert.training.run import train as run
    from mmbert.training.setup import world_rank

    silence_libraries()
    try:
        result = run(loaded, folder, resume=resume, skip_bad=skip_bad)
    except TrainingStopped as stopped:
        if world_rank():
            raise typer.Exit(stopped.exit_code) from stopped  # all have stopped; the first process says so
        raise
    except KeyboardInterrupt:
        if not world_rank():
            note(f"interrupted; {_what_is_left(folder)}")
        raise
    ranks.leave()
    if world_rank():
        return  # the first process speaks
    if as_json:
        print_json(
            {
                "model": result.model,
                "folder": result.folder,
                "seconds": round(result.seconds, 1),
                "skipped": [{"where": where, "reason": reason} for where, reason in result.skipped],
                **result.metrics,
            }
        )
        return
    note_left_out(result.skipped)
    report = result.metrics.get("evaluation") or {}
    mean = report.get("text_to_image", {}).get("mean")
    if result.before:
        print("this run was finished before; --no-resume starts over")
    print(f"model: {result.model}  ({result.seconds:.0f} s of training)")
    if mean:
        print("text to image, mean: " + "  ".join(f"{k} {100 * mean[k]:.1f} %" for k in ("R@1", "R@5", "R@10")))
    single = {name: value for name, value in report.items() if isinstance(value, float)}
    if single:
        print("  ".join(f"{name} {value:.2f}" for name, value in single.items()))


def _what_is_left(folder: Path) -> str:
    """Of a run that was interrupted."""
    from mmbert.training.checkpoints import last_checkpoint

    kept = last_checkpoint(current_stage(folder) / "state")
    if kept is None:
        return "there is no checkpoint to go on from (save_every=N writes one every N steps)"
    return f"the same command goes on from {kept.name}"


def _chosen(
    recipe: str | None,
    overrides: Sequence[str] | None,
    data: str | None,
    features: str | None,
    init: str | None,
    out: Path | None,
) -> tuple[Recipe, Path]:
    """The recipe with its settings, and the run's folder."""
    if recipe is None:
        raise UsageError("which recipe?", hint="mmbert train --list lists them")
    from mmbert.training.recipe import load_recipe

    chosen = [f"data={data}"] if data is not None else []
    chosen += [f"features={features}"] if features is not None else []
    chosen += [f"model.init={init}"] if init is not None else []
    loaded = load_recipe(recipe, [*chosen, *(overrides or [])])
    return loaded, out or Path("runs") / loaded.name


def read_arguments(arguments: Sequence[str]) -> tuple[Recipe, Path]:
    """What ``mmbert train`` with these arguments would run, and in which folder, without running it.

    Raises:
        ConfigError: there is no such recipe, or a setting is wrong.
        UsageError: no recipe is named.
    """
    from mmbert.cli.main import load_command

    said = load_command("train").make_context("mmbert train", list(arguments)).params
    return _chosen(*(said[name] for name in ("recipe", "overrides", "data", "features", "init", "out")))
