"""Reading a pickle as data: containers, text and numbers come out, and nothing in the file is ever called.

Some corpora were published as Python pickles, which can run any program when they are read the usual way.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from mmbert.errors import DataError


class _Latin1Bytes:
    """What Python 3 writes for ``bytes`` in protocols 0 to 2: ``_codecs.encode(text, "latin1")``.

    An object without attributes, so that a pickle cannot change it either.
    """

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
        return text.encode("latin1")


_SAFE: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _Latin1Bytes(),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
}


class _DataOnly(pickle.Unpickler):
    """Builds what the language of pickles builds by itself, and sets; refuses everything that has to be imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _SAFE[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain data are read") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def read_pickle(path: Path) -> Any:
    """The plain data of a pickle of any protocol, Python 2's included (its ``str`` is read as Latin-1).

    Raises:
        DataError: the file is missing, damaged, or holds anything but containers, text, bytes and numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint="check the path") from error
    try:
        return _DataOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise almost anything
        what = str(error) or type(error).__name__
        raise DataError(f"not a pickle of plain data: {what}", where=str(path), hint="get the file again") from error
