"""Files in zip archives, named as ``train.zip@/name.json``: a member of an archive, or a file in an unpacked one.

Archives come from outside: a member that leads out of its folder, or that unpacks to an absurd size, is refused.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from mmbert.errors import DataError, ImageError

LARGEST_MEMBER = 256 << 20
"""Bytes of one member, unpacked."""
LARGEST_RATIO = 200
"""How many times smaller a member may be packed; texts and images stay far below."""
MARK = re.compile(r"\.zip@/?")
OPEN_ARCHIVES = 16


@dataclass(frozen=True)
class ArchivePath:
    """``archive@/member``: where a file is.

    Args:
        archive: the archive, relative to the file that names it; "" for a file of its own.
        member: the path in it.
    """

    archive: str
    member: str

    @classmethod
    def parse(cls, text: str, where: str | None = None) -> ArchivePath:
        """Read a path with or without an archive in it.

        Raises:
            DataError: it is empty, or leads out of its folder.
        """
        found = MARK.search(text)
        parsed = cls("", text) if found is None else cls(text[: found.start()] + ".zip", text[found.end() :])
        for part in (parsed.archive, parsed.member):
            _check_inside(part, where)
        if not parsed.member:
            raise DataError(f"{text!r} names no file", where=where)
        return parsed

    @property
    def stem(self) -> str:
        """The member without its ending: the key of the image's regions, whichever archive they came in."""
        path = PurePosixPath(self.member)
        return str(path.with_suffix("")) if path.name else self.member

    def zip_file(self, root: Path) -> Path:
        """The archive as a file."""
        return root / self.archive

    def plain_file(self, root: Path) -> Path:
        """The file where the archive is unpacked (``.zip@`` left out)."""
        return root / self.archive.removesuffix(".zip") / self.member


def _check_inside(path: str, where: str | None) -> None:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if ".." in parts or path.startswith(("/", "\\")) or ":" in path or "\0" in path:
        raise DataError(f"the path {path!r} leads out of its folder", where=where, hint="nothing was read from it")


class Archive:
    """A zip opened for reading.

    Raises:
        DataError: missing, or not a zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            what = "no such archive" if isinstance(error, FileNotFoundError) else f"not a zip, or cut short: {error}"
            raise DataError(what, where=str(path), hint="copy or download it again") from error

    def members(self) -> list[str]:
        """Names of all files in it, sorted.

        Raises:
            DataError: one leads out of the archive's folder.
        """
        names = [entry.filename for entry in self._zip.infolist() if not entry.is_dir()]
        for name in names:
            _check_inside(name, str(self.path))
        return sorted(names)

    def read(self, member: str) -> bytes:
        """Content of one file.

        Raises:
            DataError: not there, damaged, or of an absurd size.
        """
        where = f"{self.path}@/{member}"
        try:
            entry = self._zip.getinfo(member)
        except KeyError as error:
            raise DataError("no such file in the archive", where=where) from error
        packed = max(1, entry.compress_size)
        if entry.file_size > LARGEST_MEMBER or (entry.file_size > 1 << 20 and entry.file_size > LARGEST_RATIO * packed):
            raise DataError(f"it unpacks to {entry.file_size} bytes from {packed}", where=where, hint="not read")
        try:
            with self._zip.open(entry) as file:
                content = file.read(entry.file_size + 1)  # what the header says is checked, not trusted
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise DataError(f"damaged: {error}", where=where, hint="copy or download the archive again") from error
        if len(content) != entry.file_size:
            raise DataError("another size than the archive says", where=where, hint="download the archive again")
        return content


@lru_cache(maxsize=OPEN_ARCHIVES)
def _opened(path: Path, stamp: tuple[int, int]) -> Archive:
    return Archive(path)


def open_archive(path: Path) -> Archive:
    """An archive, kept open as long as the file stays as it is."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError("no such archive", where=str(path), hint="put it beside the file that names it") from error
    return _opened(path, (state.st_size, state.st_mtime_ns))


@dataclass(frozen=True)
class ZippedImage:
    """An image in an archive; stands wherever an ``ImageRef`` does and is read when it is opened.

    Args:
        archive: the zip.
        member: the image in it.
        key: identity of the image.
    """

    archive: Path
    member: str
    key: str

    @property
    def path(self) -> None:
        """It is no file of its own."""
        return

    @property
    def data(self) -> bytes:
        """Encoded bytes.

        Raises:
            ImageError: the archive or the member cannot be read.
        """
        try:
            return open_archive(self.archive).read(self.member)
        except DataError as error:
            raise ImageError(error.message, where=error.where, hint=error.hint) from error
