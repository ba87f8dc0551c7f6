"""Files and folders that are there whole or not at all: whatever is written is written aside and renamed at the end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbert.errors import UsageError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when all went well, and is gone when not.

    Raises:
        UsageError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or never there
            part.unlink()


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` when all went well, and nothing when not.

    Raises:
        UsageError: ``out`` is there already and not an empty folder, or its parent is missing or cannot be written to.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already", hint="give a new folder")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", hint="create it first")
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
