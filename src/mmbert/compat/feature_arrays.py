"""Old features as arrays: ``.npy`` and ``.npz`` files (MMF), HDF5, LMDB (MMF, ViLBERT), ``datasets`` data sets.

Optional libraries are imported when such a file is opened. Pickles are read as data, never executed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmbert.compat.feature_values import NAMES, find, unpickled
from mmbert.compat.features import read_file
from mmbert.data.archives import Archive
from mmbert.errors import DataError
from mmbert.plugins import need_packages

IDS = ("image_id", "image_ids", "img_id", "ids", "id", "key", "keys", "file_name")
LARGEST_HEADER = 10_000


def _need(library: str) -> Any:
    return need_packages("features", library, message=f"the Python package {library} is not installed")[0]


def read_arrays(path: Path) -> dict[str, Any]:
    """What an ``.npz``, or an ``.npy`` (with its ``_info.npy``), says about one image.

    Raises:
        DataError: damaged, of an absurd size, or a pickle that could run code.
    """
    if path.suffix.lower() == ".npz":
        archive = Archive(path)
        found = {n.removesuffix(".npy"): read_npy(archive.read(n), f"{path}@/{n}") for n in archive.members()}
        info = found.pop("info", None)
        return found | (dict(info) if isinstance(info, Mapping) else {})
    content = read_npy(read_file(path), str(path))
    if isinstance(content, Mapping):
        return dict(content)
    info_path = path.with_name(f"{path.stem}_info.npy")
    if not info_path.is_file():
        raise DataError(f"boxes and image size are missing: no {info_path.name}", where=str(path))
    info = read_npy(read_file(info_path), str(info_path))
    if not isinstance(info, Mapping):
        raise DataError("not a dictionary of boxes and image size", where=str(info_path))
    return {**info, "features": content}


def read_npy(content: bytes, where: str) -> Any:
    """An array, or the one object (a dictionary, say) that such a file holds.

    Raises:
        DataError: no ``.npy``, cut short, or a pickle that could run code.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file, max_header_size=LARGEST_HEADER)
        rest = content[file.tell() :]
        if dtype.hasobject:
            objects = unpickled(rest, where)
            return objects.item() if isinstance(objects, np.ndarray) and objects.shape == () else objects
        count = int(np.prod(shape, dtype=np.float64))
        if len(rest) != count * dtype.itemsize:
            raise ValueError(f"{len(rest)} bytes for {count} numbers")
        return np.frombuffer(rest, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, OverflowError, SyntaxError) as error:
        raise DataError(f"not an .npy file, or cut short: {error}", where=where, hint="copy it again") from error


class Hdf5Features:
    """A group for each image, or arrays over all images with their ids."""

    def __init__(self, path: Path) -> None:
        h5py = _need("h5py")
        self.path = path
        self._h5py = h5py
        try:
            self._file = h5py.File(path, "r")
            names = list(self._file)
        except (OSError, RuntimeError) as error:
            raise DataError(f"not HDF5, or damaged: {error}", where=str(path)) from error
        for name in names:  # a link could name any file of this machine
            if isinstance(self._file.get(name, getlink=True), h5py.ExternalLink):
                raise DataError(f"{name!r} is a link to another file", where=str(path), hint="nothing was read")
        self.grouped = all(isinstance(self._file[name], h5py.Group) for name in names) and bool(names)
        self._rows = {} if self.grouped else self._ids(names)

    def _ids(self, names: Sequence[str]) -> dict[str, int]:
        found = next((name for name in IDS if name in names), None)
        if found is None:
            raise DataError(
                "neither a group for each image nor an array of ids",
                where=str(self.path),
                hint=f"arrays over images need their ids: {', '.join(IDS)}",
            )
        keys = [
            v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in self._file[found][()].tolist()
        ]
        if len(set(keys)) != len(keys):
            raise DataError(f"{found} names an image twice", where=str(self.path))
        return {key: row for row, key in enumerate(keys)}

    @property
    def keys(self) -> Sequence[str]:
        return list(self._file) if self.grouped else list(self._rows)

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        where = f"{self.path}:{key}"
        try:
            if self.grouped:
                group = self._file[key]
                values = {name: group[name][()] for name in group if self._is_array(group, name)}
                return values | {name: group.attrs[name] for name in group.attrs}, where
            row = self._rows[key]
            names = [name for names in NAMES.values() for name in names if name in self._file]
            values = {name: self._file[name][row] for name in names if self._is_array(self._file, name)}
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DataError(f"damaged: {error}", where=where) from error
        return _without_padding(values), where

    def _is_array(self, group: Any, name: str) -> bool:
        link = group.get(name, getlink=True)
        return not isinstance(link, self._h5py.ExternalLink) and isinstance(group[name], self._h5py.Dataset)


def _without_padding(values: dict[str, Any]) -> dict[str, Any]:
    """Arrays over images have as many rows for each; only the first ``num_boxes`` of them count."""
    count = find(values, "count")
    if count is None:
        return values
    padded = {name for what in ("boxes", "features", "classes") for name in NAMES[what]}
    end = max(0, int(np.asarray(count).reshape(-1)[0]))
    return {n: v[:end] if n in padded and np.ndim(v) == 2 and len(v) > end else v for n, v in values.items()}


class LmdbFeatures:
    """A pickle of a dictionary for each image, and perhaps an entry ``keys`` with all names."""

    def __init__(self, path: Path) -> None:
        lmdb = _need("lmdb")
        self.path = path
        self._error = lmdb.Error
        try:
            self._database = lmdb.open(
                str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir(), create=False
            )
        except lmdb.Error as error:
            raise DataError(f"not an LMDB, or damaged: {error}", where=str(path)) from error

    @cached_property
    def keys(self) -> Sequence[str]:
        try:
            with self._database.begin(buffers=False) as transaction, transaction.cursor() as cursor:
                names = [bytes(key) for key in cursor.iternext(keys=True, values=False)]
        except self._error as error:
            raise DataError(f"damaged: {error}", where=str(self.path)) from error
        return [name.decode("utf-8", "surrogateescape") for name in names if name != b"keys"]

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        where = f"{self.path}:{key}"
        try:
            with self._database.begin(buffers=False) as transaction:
                content = transaction.get(key.encode("utf-8", "surrogateescape"))
        except self._error as error:
            raise DataError(f"damaged: {error}", where=where) from error
        values = unpickled(bytes(content or b""), where)
        if not isinstance(values, Mapping):
            raise DataError("not a dictionary", where=where)
        return {_text(name): value for name, value in values.items()}, where


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


class DatasetFeatures:
    """A data set of the ``datasets`` library: a folder that it saved, or an ``.arrow`` or ``.parquet`` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = self._open(path)
        names = self._rows.column_names
        found = next((name for name in IDS if name in names), None)
        if found is None:
            raise DataError(
                f"no column of ids among {', '.join(names)}", where=str(path), hint=f"one of {', '.join(IDS)}"
            )
        self.keys = [str(key) for key in self._rows[found]]

    @staticmethod
    def _open(path: Path) -> Any:
        import datasets

        try:
            if path.suffix == ".parquet":
                return datasets.Dataset.from_parquet(str(path)).with_format("numpy")
            if path.suffix == ".arrow":
                return datasets.Dataset.from_file(str(path)).with_format("numpy")
            found = datasets.load_from_disk(str(path))
        except Exception as error:  # the library raises many kinds
            raise DataError(f"not a data set, or damaged: {error}", where=str(path)) from error
        if isinstance(found, datasets.DatasetDict):
            raise DataError("several splits", where=str(path), hint=f"give one: {path}/{next(iter(found), 'train')}")
        return found.with_format("numpy")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        number = self._numbers[key]
        row = self._rows[number]
        return {name: _nested(value) for name, value in row.items()}, f"{self.path}:{number}"


def _nested(value: Any) -> Any:
    """Lists of arrays (ragged columns) as one array."""
    if isinstance(value, np.ndarray) and value.dtype == object and len(value):
        return np.stack([np.asarray(part) for part in value])
    return value
