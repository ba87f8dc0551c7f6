"""Files of a region store: a local folder, or a folder on any file system that fsspec knows (``s3://``, ``memory://``).

Local Arrow files are mapped into memory; others are read whole. What is written is in place at once or not at all.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmbert.errors import DataError

PARTIAL = ".partial"
_HOST = platform.node() or "here"


class StoreFiles:
    """One folder.

    Args:
        path: of the folder; a URL for a file system that is not local.

    Raises:
        DataError: no file system of that kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.local = "://" not in self.path or self.path.startswith("file://")
        self._fs: Any = None
        if self.local:
            self.root = self.path.removeprefix("file://")
            return
        import fsspec

        try:
            self._fs, self.root = fsspec.core.url_to_fs(self.path)
        except (ValueError, ImportError, OSError) as error:
            raise DataError(f"no such file system: {error}", where=self.path, hint="give a folder or a URL") from error

    def place(self, name: str) -> str:
        """Full path of a file of the folder, for messages too."""
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """Content of a small file.

        Raises:
            FileNotFoundError: there is none.
            DataError: it cannot be read.
        """
        try:
            return Path(self.place(name)).read_bytes() if self.local else self._fs.cat_file(self.place(name))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(self.place(name)) from error
        except OSError as error:
            raise DataError(f"cannot be read: {error}", where=self.place(name)) from error

    def read_arrow(self, name: str, size: int | None = None) -> pa.Table:
        """A table; local files are mapped, so nothing is read before it is asked for.

        Args:
            name: of an Arrow stream.
            size: bytes it must have; None does not look.

        Raises:
            DataError: missing, of another size, or no Arrow file.
        """
        where = self.place(name)
        try:
            if self.local:
                mapped = pa.memory_map(where)
                found, source = mapped.size(), pa.BufferReader(mapped.read_buffer())
            else:
                data = self._fs.cat_file(where)
                found, source = len(data), pa.BufferReader(data)
            if size is not None and found != size:
                raise DataError(f"damaged: {found} bytes instead of {size}", where=where, hint="copy or make it again")
            return pa.ipc.open_stream(source).read_all()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError) as error:
            raise DataError(f"damaged or missing: {error}", where=where, hint="copy or make it again") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file; readers see the old content or the new one.

        Raises:
            DataError: it cannot be written.
        """
        where = self.place(name)
        try:
            if not self.local:  # object stores show a file once it is complete
                self._fs.makedirs(where.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(where, content)
                return
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            aside = Path(f"{where}.{_HOST}@{os.getpid()}{PARTIAL}")
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(where)
        except OSError as error:
            raise DataError(f"cannot be written: {error}", where=where) from error

    def fetch(self, name: str, to: Path) -> None:
        """Copy a file here.

        Raises:
            DataError: it is missing, or cannot be read.
        """
        where = self.place(name)
        try:
            if self.local:
                shutil.copyfile(where, to)
            else:
                self._fs.get_file(where, str(to))
        except OSError as error:
            raise DataError(f"cannot be fetched: {error}", where=where) from error

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder below, sorted; none where there is no such folder."""
        try:
            if self.local:
                return sorted(entry.name for entry in Path(self.place(folder)).iterdir())
            return sorted(path.rpartition("/")[2] for path in self._fs.ls(self.place(folder), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            Path(self.place(name)).unlink() if self.local else self._fs.rm_file(self.place(name))

    def remove_partial(self, folder: str) -> None:
        """Remove what writers on this machine that were killed have left aside in the folder or one below."""
        for name in self.names(folder) if self.local else []:
            host, _, process = name.removesuffix(PARTIAL).rpartition("@")
            left = name.endswith(PARTIAL) and host.endswith(f".{_HOST}") and process.isdigit()
            if left and not _runs(int(process)):
                self.remove(f"{folder}/{name}".lstrip("/"))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
