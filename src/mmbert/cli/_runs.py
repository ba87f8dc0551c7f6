"""What `mmbert info` says about the folder of a training run. Reads its files; cheap to import."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mmbert.data.yaml_values import read_value
from mmbert.errors import TrainingError
from mmbert.evaluation.measures import merit
from mmbert.training.run_folder import FIRST, LOG, METRICS, RECIPE

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Characters of a curve."""
FIGURES = (
    ("grad_norm", "gradient norm", 1, "{:.4g}"),
    ("learning_rate", "learning rate", 1, "{:.4g}"),
    ("speed/positions_per_second", "positions per second", 1, "{:,.0f}"),
    ("speed/padding_saved", "padding saved", 100, "{:.0f} %"),
    ("speed/memory_gib", "memory at most", 1, "{:.2f} GiB"),
)
"""Of those that were logged last: key, what it is called, what it is multiplied by, how it is written."""


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run (finished or not), and not of a model."""
    return (current_stage(folder) / LOG).is_file() and not (folder / "config.json").is_file()


def current_stage(folder: Path) -> Path:
    """The folder itself, or that of its first stage where the run has come no further."""
    first = folder / FIRST
    return first if (first / LOG).is_file() and not (folder / LOG).is_file() else folder


def describe_run(folder: Path) -> dict[str, Any]:
    """What a run has written; of one that has not ended its first stage, what that has.

    Returns:
        ``path``, ``stage`` (``first``, or None where it is the run itself), ``name``, ``description``, ``steps``
        (planned, or None where it counts epochs), ``step`` (logged last), ``finished``, ``seconds``, ``best`` (``step``
        and ``metrics`` of the evaluation that the kept model comes from), ``last`` (figures logged last), ``curves``
        (name to [step, value] pairs), ``checkpoints`` (steps), ``models`` (folders).

    Raises:
        TrainingError: a file of it cannot be read.
    """
    whole, folder = folder, current_stage(folder)
    recipe = _yaml(folder / RECIPE)
    lines = _log(folder / LOG)
    watched = f"eval_{(recipe.get('evaluation') or {}).get('metric', 'R@1')}"
    evaluations = [line for line in lines if watched in line]
    best = max(evaluations, key=lambda line: (merit(watched, line[watched]), -line["step"]), default=None)
    steps = [line for line in lines if "loss" in line]
    metrics = folder / METRICS
    finished = _json(metrics) if metrics.is_file() else None
    return {
        "path": str(folder),
        "stage": FIRST if folder != whole else None,
        "name": recipe.get("name"),
        "description": recipe.get("description"),
        "steps": recipe.get("steps"),
        "epochs": recipe.get("epochs"),
        "step": max((line["step"] for line in lines), default=0),
        "finished": finished is not None,
        "seconds": (finished or {}).get("seconds"),
        "watched": watched.removeprefix("eval_"),
        "best": {"step": best["step"], "metrics": _evaluation(best)} if best is not None else None,
        "last": {k: v for k, v in steps[-1].items() if k not in ("step", "time", "epoch")} if steps else {},
        "curves": _curves(steps, evaluations, watched),
        "checkpoints": _checkpoints(folder / "state"),
        "models": [str(folder / name) for name in ("best", "last") if (folder / name / "config.json").is_file()],
    }


def measure_of(folder: Path) -> str | None:
    """What decides which of the run's models is best; None where its recipe does not say.

    Raises:
        TrainingError: ``recipe.yaml`` cannot be read.
    """
    return (_recipe(folder).get("evaluation") or {}).get("measure")


def stores_of(folder: Path) -> list[str]:
    """The region stores that the run looked images up in; none where it opened them, or its recipe does not say.

    Raises:
        TrainingError: ``recipe.yaml`` cannot be read.
    """
    named = _recipe(folder).get("features") or []
    return [named] if isinstance(named, str) else list(named)


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    return _yaml(path) if path.is_file() else {}


def _evaluation(line: dict[str, Any]) -> dict[str, float]:
    return {k.removeprefix("eval_"): v for k, v in line.items() if k.startswith("eval_")}


def _curves(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], watched: str) -> dict[str, list[Any]]:
    """The whole loss, each objective's (``component/objective``), and what is watched."""
    names = {k: None for line in steps for k in line if k.count("/") == 1 and not k.startswith(("rate/", "speed/"))}
    found = {name: [[line["step"], line[name]] for line in steps if name in line] for name in ("loss", *names)}
    if evaluations:
        found[watched.removeprefix("eval_")] = [[line["step"], line[watched]] for line in evaluations]
    return {name: points for name, points in found.items() if points}


def _checkpoints(state: Path) -> list[int]:
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in state.glob("checkpoint-*"))
    return sorted(int(match[1]) for match in found if match)


def _log(path: Path) -> list[dict[str, Any]]:
    """Lines of the log; the last may have been cut off."""
    found = []
    raw = _read(path).splitlines()
    for number, line in enumerate(raw, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(raw):
                raise TrainingError("not a line of JSON", where=f"{path}:{number}") from error
    return [line for line in found if isinstance(line, dict) and isinstance(line.get("step"), int)]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read it: {error}", where=str(path)) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise TrainingError("not JSON", where=str(path)) from error
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = read_value(_read(path))
    except yaml.YAMLError as error:
        raise TrainingError("not valid YAML", where=str(path)) from error
    return found if isinstance(found, dict) else {}


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as a row of bars, at most ``width`` of them (each the mean of its share)."""
    if len(values) > width:
        bounds = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def print_run(run: dict[str, Any]) -> None:
    """For people."""
    planned = f" of {run['steps']}" if run["steps"] else f" ({run['epochs']:g} epochs)" if run["epochs"] else ""
    again = "goes on" if run["checkpoints"] else "starts over"
    state = f"finished in {run['seconds']:g} s" if run["finished"] else f"not finished; the same command {again}"
    rows = [
        ("run", run["path"]),
        *([("stage", "the first; the recipe itself comes after it")] if run["stage"] else []),
        ("recipe", ": ".join(filter(None, (run["name"], run["description"])))),
        ("step", f"{run['step']}{planned}, {state}"),
    ]
    best = run["best"]
    if best is not None:
        rows.append(("best", f"step {best['step']}: " + "  ".join(f"{k} {v:.4g}" for k, v in best["metrics"].items())))
    rows += [("model", folder) for folder in run["models"]]
    if run["checkpoints"]:
        rows.append(("checkpoints", " ".join(map(str, run["checkpoints"]))))
    last = run["last"]
    rows += [(label, form.format(factor * last[name])) for name, label, factor, form in FIGURES if name in last]
    width = max(map(len, [label for label, _ in rows] + list(run["curves"]))) + 2
    for label, value in rows:
        print(f"{label:<{width}}{value}")
    for name, points in run["curves"].items():
        values = [value for _, value in points]
        print(f"{name:<{width}}{sparkline(values):<{WIDTH}}  {values[0]:.4g} → {values[-1]:.4g}")
