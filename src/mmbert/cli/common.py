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
Int8Option = Annotated[
    bool,
    typer.Option("--int8", help="Multiply in 8 bits on a CPU: faster for wide models (512 and more), less exact."),
]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option("--features", help="A region store in which images are looked up instead of being opened."),
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


def find_model(name: str) -> Path:
    """The folder of a model given by folder, name or hub id; PyTorch is only imported where it is not a folder.

    Raises:
        CheckpointError: there is no such model.
    """
    if Path(name).is_dir():
        return Path(name)
    from mmbert.api import loading

    return loading.find_model(name)


def load_model(name: str, device: str | None = None, *, int8: bool = False) -> MMBert:
    """Load a model for a command; the bars and remarks of the libraries below stay silent.

    Args:
        name: shipped name, folder or hub id.
        device: where it computes; the best there is.
        int8: multiply in 8 bits (on a CPU), unless that is not faster on this one.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        UsageError: the device does not exist here, or cannot multiply in 8 bits.
    """
    if device is not None:
        check_device(device)
    silence_libraries()
    from mmbert.api.front_door import MMBert

    return MMBert.from_pretrained(name, device=device, int8=int8_if_faster(int8))


def int8_if_faster(asked: bool) -> bool:
    """Whether to multiply in 8 bits: where it is asked for and faster on this processor; a note where it is not."""
    if not asked:
        return False
    from mmbert.model.int8 import int8_is_faster

    if int8_is_faster():
        return True
    note("products in 8 bits are not faster than fp32 on this processor: --int8 is left out")
    return False


def silence_libraries() -> None:
    """No bars and remarks of transformers for the rest of the process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def check_device(name: str) -> None:
    """Make sure that PyTorch can compute on this device.

    Raises:
        UsageError: it cannot; the hint names those it can.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            usable.append("mps")
        raise UsageError(f"cannot compute on {name!r}", hint=f"here: {', '.join(usable)}") from error


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


def counted(number: int, name: str) -> str:
    """``(1, 'image')`` -> ``'1 image'``; ``(1234, 'image')`` -> ``'1,234 images'``."""
    return f"{human_count(number)} {name}{'' if number == 1 else 's'}"
