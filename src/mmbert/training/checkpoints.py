"""Checkpoints of a run: written aside, forced to the disk, then renamed. Each is whole or not there.

A checkpoint folder ``checkpoint-STEP`` holds the model, the optimiser, the schedule, the gradient scaler, the averaged
weights and every process's random numbers, as transformers' Trainer writes them, and a manifest: how far the run is,
with how many processes and which versions, and the size of every file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mmbert.errors import CheckpointError

MANIFEST = "manifest.json"
ASIDE = ".writing-"
"""What folders that are being written begin with; one that is left behind by a killed run is rubbish."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Manifest:
    """How far a run was.

    Attributes:
        step: optimiser steps done.
        batches: batches of the mixture that these have used up, over all processes; the next one's number.
        planned: batches of the whole run, as planned by the processes that wrote this.
        world_size: processes.
        seed: the recipe's.
        versions: of the packages.
        seconds: of training, over all sessions so far.
        files: bytes of each file.
    """

    step: int
    batches: int
    planned: int
    world_size: int
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    files: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether that was the last step."""
        return self.batches >= self.planned

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint, as its last file."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self) | {"files": _sizes(folder)}, indent=1), "utf-8")


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, whose files are there in full length.

    Raises:
        CheckpointError: it has none, or a file is missing or was cut off.
    """
    try:
        found = Manifest(**json.loads((checkpoint / MANIFEST).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"no manifest that can be read: {error}", where=str(checkpoint)) from error
    sizes = _sizes(checkpoint)
    for name, size in found.files.items():
        if sizes.get(name) != size:
            raise CheckpointError(f"{name} has {sizes.get(name, 'no')} bytes, not {size}", where=str(checkpoint))
    return found


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in ``folder``, the newest last."""
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; a warning names newer ones that are damaged."""
    for path in reversed(checkpoints(folder)):
        try:
            read_manifest(path)
        except CheckpointError as error:
            warnings.warn(f"left aside, damaged: {error}", stacklevel=2)
        else:
            return path
    return None


def prune(folder: Path, keep: int, keep_every: int | None) -> None:
    """Delete all checkpoints but the ``keep`` newest and those at multiples of ``keep_every`` steps."""
    for path in checkpoints(folder)[:-keep]:
        if keep_every is None or int(path.name.rsplit("-", 1)[1]) % keep_every:
            doomed = path.rename(path.with_name(f"{ASIDE}old-{path.name}"))  # half a deletion must not look whole
            shutil.rmtree(doomed, ignore_errors=True)


def clear_aside(*folders: Path) -> None:
    """Delete what killed runs were writing."""
    for folder in folders:
        for path in folder.glob(f"{ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)


def commit(aside: Path, final: Path) -> None:
    """Force a folder written aside to the disk and give it its name; an older one of that name makes room."""
    for path in [*aside.rglob("*"), aside]:
        _force(path)
    if final.exists():
        old = final.rename(final.with_name(f"{ASIDE}old-{final.name}"))
        aside.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        aside.rename(final)
    _force(final.parent)


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes ``final`` at the end, or leaves nothing behind where that fails."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=ASIDE, dir=final.parent) as holder:
        aside = Path(holder) / final.name
        aside.mkdir()
        yield aside
        commit(aside, final)


def write_whole(path: Path, text: str) -> None:
    """Write a file aside, then rename it: whoever reads it finds the old content or the new."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(text, "utf-8")
    _force(aside)
    aside.replace(path)


def _force(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
