"""Where an index lies: a folder on disk, or a URI of an object store (``s3://bucket/photos-index``).

The table itself is LanceDB's affair, which knows both; this is for the few small files beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmbert.errors import IndexStoreError, UsageError


class Place:
    """A folder by path or URI; all names are relative to it.

    Args:
        where: a path, or a URI with ``://`` that both LanceDB and fsspec understand (s3, gs, az, file).
    """

    def __init__(self, where: str | Path) -> None:
        self.uri = str(where).rstrip("/") or "/"
        self.remote = "://" in self.uri

    def __str__(self) -> str:
        return self.uri

    def exists(self) -> bool:
        """Whether there is anything."""
        return bool(self._fs.exists(self._root)) if self.remote else Path(self.uri).exists()

    def is_file(self, name: str = "") -> bool:
        """Whether ``name`` (the place itself where empty) is a file."""
        if self.remote:
            return bool(self._fs.isfile(self._join(name)))
        return Path(self.uri, name).is_file()

    def names(self) -> set[str]:
        """Names of the files and folders directly inside; none where the folder does not exist."""
        if not self.exists():
            return set()
        if self.remote:
            return {str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False)}
        return {child.name for child in Path(self.uri).iterdir()}

    def make(self) -> None:
        """Make the folder; object stores have none to make."""
        if self.remote:
            self._fs.makedirs(self._root, exist_ok=True)
        else:
            Path(self.uri).mkdir(parents=True, exist_ok=True)

    def has(self, pattern: str) -> bool:
        """Whether a file matches the pattern (``images.lance/_versions/*.manifest``)."""
        if self.remote:
            return bool(self._fs.glob(self._join(pattern)))
        return any(Path(self.uri).glob(pattern))

    def read(self, name: str) -> str:
        """The text of a file."""
        if self.remote:
            return str(self._fs.cat_file(self._join(name)).decode("utf-8"))
        return Path(self.uri, name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        """Write a file so that a reader sees the old or the new one, never half of it."""
        part = name + ".part"
        if self.remote:
            self._fs.pipe_file(self._join(part), text.encode("utf-8"))
            self._fs.mv(self._join(part), self._join(name))
        else:
            Path(self.uri, part).write_text(text, encoding="utf-8")
            Path(self.uri, part).replace(Path(self.uri, name))

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it, if there is one."""
        if not self.remote:
            shutil.rmtree(Path(self.uri, name), ignore_errors=True)
        elif self._fs.exists(self._join(name)):
            self._fs.rm(self._join(name), recursive=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one writer at a time. Object stores have no such lock: there LanceDB refuses conflicting commits.

        Raises:
            IndexStoreError: somebody else is writing.
        """
        if self.remote:
            yield
            return
        try:
            with FileLock(Path(self.uri, ".lock"), timeout=0):
                yield
        except Timeout:
            raise IndexStoreError(
                "another mmbert index is writing to it", where=self.uri, hint="wait until it is done"
            ) from None

    @cached_property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.uri)[0]
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"cannot use {self.uri}: {error}", hint="a folder, or a URI: s3:// (pip install s3fs), gs:// (gcsfs)"
            ) from error

    @cached_property
    def _root(self) -> str:
        return str(self._fs._strip_protocol(self.uri))

    def _join(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
