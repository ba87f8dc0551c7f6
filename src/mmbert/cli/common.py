"""What commands share: options, printing, progress and loading a model. Cheap to import."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.errors import UsageError

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model: 'starter', a model folder or a hub id.", show_default=True)
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, mps. Default: the best there is.")
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out records that cannot be used; list them.")]


def print_json(value: Any) -> None:
    """Print ``value`` as one line of JSON on standard output (paths as strings, numpy numbers as numbers)."""
    print(json.dumps(value, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def note(message: str) -> None:
    """Tell the user something on standard error, away from what programs read."""
    print(message, file=sys.stderr)


def show_progress() -> bool:
    """Whether progress bars are of use: only when a person looks at standard error."""
    return sys.stderr.isatty()


def load_model(name: str, device: str | None = None) -> MMBert:
    """Load a model for a command; the bars and remarks of the libraries below stay silent."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    from mmbert.api.front_door import MMBert

    return MMBert.from_pretrained(name, device=device)


def output_path(path: Path) -> Path:
    """``path``, checked: its folder exists and it is no folder itself.

    Raises:
        UsageError: the file cannot be written there.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="give a file to write")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", hint="create it first")
    return path


def human_bytes(count: int) -> str:
    """``1536`` -> ``'1.5 KB'`` (steps of 1000, as disks are sold)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def human_count(count: int) -> str:
    """``12345678`` -> ``'12,345,678'``."""
    return f"{count:,}"
