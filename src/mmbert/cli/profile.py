"""Measure where the time of a recipe's training step goes."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli.common import JsonOption, human_bytes, human_count, note, print_json, silence_libraries

if TYPE_CHECKING:
    from mmbert.training.profiling import StepProfile


def profile(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships with mm-bert, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A folder with captions (or FOLDER:SPLIT) to train on.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to measure.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Measure where the time of a recipe's training step goes.

    The share of the machine's peak is that of the whole step against one large matrix product, measured in this run.
    Nothing is written.

    Examples:

      mmbert profile starter
      mmbert profile retrieval --data my-photos --steps 10 precision=fp32
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells of itself, and of GPUs that are not there
    from mmbert.training.profiling import profile_step
    from mmbert.training.recipe import load_recipe

    silence_libraries()
    chosen = [f"data={data}"] if data is not None else []
    found = profile_step(load_recipe(recipe, [*chosen, *(overrides or [])]), steps, tell=note)
    if as_json:
        print_json(asdict(found) | {"share_of_peak": found.share_of_peak})
    else:
        _print(found)


def _print(found: StepProfile) -> None:
    from mmbert.cli._tables import print_table

    phases = [(name, f"{1000 * value:.1f}", _percent(value / found.seconds)) for name, value in found.phases.items()]
    print_table(f"one step in {found.precision}: {found.seconds:.3f} s", ("phase", "ms", "share"), phases)
    kinds = [(kind, _percent(share)) for kind, share in found.operators.items()]
    print_table("operators", ("kind", "own time"), kinds)
    top = [(name, _percent(share), human_count(count)) for name, share, count in found.top]
    print_table("", ("longest", "own time", "calls"), top)
    rows = [
        ("positions", f"{human_count(found.positions)} ({_percent(found.padding_saved)} fewer than with padding)"),
        ("positions per second", human_count(round(found.positions / found.seconds))),
        ("operations", f"{found.flop / 1e9:,.1f} GFLOP, {found.flop / found.seconds / 1e9:,.1f} GFLOP/s"),
        ("machine's peak", f"{found.peak_flops / 1e9:,.1f} GFLOP/s; the step reaches {_percent(found.share_of_peak)}"),
        ("memory", human_bytes(found.memory)),
    ]
    for label, value in rows:
        print(f"{label:<22}{value}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
