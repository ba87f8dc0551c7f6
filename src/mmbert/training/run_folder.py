"""A run's folder: what things in it are called, whether a run can go on there, and making it ready for one.

Imports no PyTorch: the command line looks at runs with it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from mmbert.data.yaml_values import read_value
from mmbert.errors import ConfigError, TrainingError
from mmbert.training.checkpoints import clear_aside, last_checkpoint, write_whole

if TYPE_CHECKING:
    from mmbert.training.recipe import Recipe

FIRST = "first"
"""The folder of the recipe that is trained before it (``model.init: recipe:…``), which is a run's folder itself."""
LOG, RECIPE, VERSIONS = "log.jsonl", "recipe.yaml", "versions.json"
METRICS = "metrics.json"
"""In a model's folder: what was measured; in a run's: that of the model to use, written last of all."""
INITIALISATION = "initialisation.json"
"""In a run's folder: what became of every tensor of the models that it was put together from."""
LOST = ("by peer", "remote process exited", "closed connection", "timed out waiting", "nccl watchdog", "heartbeat")
"""What errors of gloo and NCCL say when another process does not answer any more."""
PASSING = (
    "accumulation",
    "log_every",
    "save_every",
    "keep",
    "keep_every",
    "report_to",
    "description",
    "parallel",
    "freed_memory",
)
"""Settings that may change when an interrupted run goes on."""
TOLD = 3
"""Differences between two recipes that an error names."""
REPLACED = ("state", "best", "last")
"""Folders of weights in a run's folder, which a run writes anew."""


def model_to_use(out: Path) -> Path:
    """The best model of a run, the last one where nothing was measured on the way."""
    best = out / "best"
    return best if best.exists() else out / "last"


def is_finished(out: Path) -> bool:
    """Whether a run has written its last model and, after that, its metrics."""
    return (out / METRICS).is_file() and (out / "last" / "config.json").is_file()


@contextlib.contextmanager
def failing_clearly(out: Path) -> Iterator[None]:
    """Turn what a full or broken disk, or a lost process, gives into an error that says what is left."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in LOST):
            raise
        kept = last_checkpoint(out / "state")
        raise TrainingError(
            "another process of the run is gone, or cannot be reached",
            where=str(out),
            hint="look for what it said last" + (f"; the same command goes on from {kept.name}" if kept else ""),
        ) from error
    except (OSError, SafetensorError) as error:
        kept = last_checkpoint(out / "state")
        raise TrainingError(
            f"cannot read or write: {getattr(error, 'strerror', None) or error}",
            where=str(getattr(error, "filename", None) or out),
            hint=f"make room; {kept.name} is intact, the same command goes on from it" if kept else None,
        ) from error


def checkpoint_of(out: Path, recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        TrainingError: the folder holds a run of another recipe.
    """
    checkpoint = last_checkpoint(out / "state")
    written, ours = _lasting(written_recipe(out)), _lasting(recipe.model_dump(mode="json"))
    if checkpoint is not None and written not in (None, ours):
        others = list(_differences(written, ours))
        more = f" and {len(others) - TOLD} more" if len(others) > TOLD else ""
        raise TrainingError(
            f"this folder holds a run of another recipe: {', '.join(others[:TOLD])}{more}",
            where=str(out),
            hint="use another --out, or --no-resume to start over",
        )
    return checkpoint


def check_starts_elsewhere(value: Any, out: Path, key: str) -> None:
    """Look through a section of a recipe for paths to what the run itself replaces.

    Raises:
        ConfigError: one is there.
    """
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            check_starts_elsewhere(inner, out, f"{key}.{name}")
    elif isinstance(value, str):
        given = Path(value).resolve()
        if any(given.is_relative_to((out / name).resolve()) for name in REPLACED):
            raise ConfigError(
                f"{key}: {value} is part of the run's own folder, which the run replaces",
                where=str(out),
                hint="use another --out",
            )


def _lasting(recipe: Any) -> Any:
    """The part of a recipe that must not change while a run goes on."""
    return {k: v for k, v in recipe.items() if k not in PASSING} if isinstance(recipe, dict) else recipe


def _differences(written: Any, ours: Any, key: str = "") -> Iterator[str]:
    """What each setting was and is, where these are not the same."""
    if isinstance(written, dict) and isinstance(ours, dict):
        for name in dict.fromkeys((*written, *ours)):
            yield from _differences(written.get(name), ours.get(name), f"{key}.{name}" if key else str(name))
    elif written != ours:
        yield f"{key or 'recipe'} was {_short(written)}, is {_short(ours)}"


def _short(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 60, placeholder=" …")


def prepare_folder(out: Path, recipe: Recipe, versions: Mapping[str, str], *, fresh: bool) -> None:
    """Make the run's folder and clear away an earlier run: late, so that wrong data or settings cost no good model.

    Raises:
        TrainingError: it is not writable.
    """
    content = recipe.model_dump(mode="json")
    try:
        out.mkdir(parents=True, exist_ok=True)
        clear_aside(out, out / "state")
        if fresh:
            for stale in (*REPLACED, "tensorboard"):
                shutil.rmtree(out / stale, ignore_errors=True)
            for stale in (LOG, METRICS):
                (out / stale).unlink(missing_ok=True)
        write_whole(out / RECIPE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_whole(out / VERSIONS, json.dumps(dict(versions), indent=1))
    except OSError as error:
        raise TrainingError(f"cannot write: {error.strerror}", where=str(out)) from error


def written_recipe(folder: Path) -> Any:
    """The resolved recipe that a run has left in its folder, or None."""
    written = folder / RECIPE
    return read_value(written.read_text("utf-8")) if written.is_file() else None
