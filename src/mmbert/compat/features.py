"""Old feature files: VL-BERT's zips of JSON, bottom-up TSV, and what other toolkits write; each a mapping of images.

:func:`open_features` tells which format a path holds. Arrays, HDF5, LMDB and datasets are in ``feature_arrays``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from mmbert.compat.feature_values import regions_of
from mmbert.data.archives import LARGEST_MEMBER, Archive, ArchivePath, open_archive
from mmbert.data.records import BadRecords
from mmbert.data.sources.legacy import read_rows
from mmbert.errors import DataError, UsageError
from mmbert.vision.regions import Regions
from mmbert.vision.store_build import SHARD_IMAGES, BuildReport, StoreBuilder
from mmbert.vision.store_format import DType, Layout

TSV_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


class FeatureFiles(Protocol):
    """An opened collection of old features."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all images; distinct."""
        ...

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        """What the files say about an image (see ``feature_values.NAMES``), and what to call it in an error.

        Raises:
            DataError: it cannot be read.
        """
        ...


def open_features(path: str | Path, bad: BadRecords) -> FeatureFiles:
    """Open old features, whatever their format.

    Args:
        path: an annotation file (JSON lines that name feature files), a zip or folder of ``.json``, ``.npy`` or
            ``.npz`` files, a bottom-up ``.tsv``, an HDF5 file, an LMDB, or a saved ``datasets`` data set.
        bad: decides about annotation lines that cannot be read.

    Raises:
        DataError: nothing there, or no format that is known.
    """
    from mmbert.compat import feature_arrays

    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError("no such file or folder", where=str(path), hint="give a feature file of the old toolkits")
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return feature_arrays.LmdbFeatures(path)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return feature_arrays.DatasetFeatures(path)
        return FolderFeatures(path)
    if suffix == ".zip":
        return ZipFeatures(path)
    if suffix == ".tsv":
        return TsvFeatures(path)
    if suffix in (".json", ".jsonl"):
        return AnnotatedFeatures(path, bad)
    if suffix in (".h5", ".hdf5"):
        return feature_arrays.Hdf5Features(path)
    if suffix in (".lmdb", ".mdb"):
        return feature_arrays.LmdbFeatures(path)
    if suffix in (".arrow", ".parquet"):
        return feature_arrays.DatasetFeatures(path)
    raise DataError(
        "no feature file that is known",
        where=str(path),
        hint=".json, .zip, .tsv, .h5, .lmdb, .arrow, .parquet, or a folder of .json, .npy or .npz files",
    )


def convert_features(
    source: str | Path,
    out: str | Path,
    *,
    encoder: str | None = None,
    dtype: DType = "fp16",
    top_k: int = 16,
    skip_bad: bool = False,
    shard_images: int = SHARD_IMAGES,
    progress: Any = lambda images: None,
) -> BuildReport:
    """Read old features once and write them as a region store.

    Args:
        encoder: identity of what made them; where None, one that says only their sizes.

    Raises:
        DataError: they cannot be read; a single image's only stop it unless ``skip_bad``.
    """
    bad = BadRecords(skip=skip_bad)
    files = open_features(source, bad)
    first = _first(files, bad)
    classes = 0 if first.classes is None else first.classes.shape[1]
    identity = encoder or f"legacy:{first.features.shape[1]}x{classes}"
    layout = Layout(
        encoder=identity, feature_size=first.features.shape[1], dtype=dtype, num_classes=classes, top_k=top_k
    )

    def produce(lots: Sequence[Sequence[str]]) -> Iterator[list[Regions | DataError]]:
        for lot in lots:
            yield [_read(files, key, identity) for key in lot]

    listed = list(bad)
    keys = list(files.keys)
    report = StoreBuilder(out, layout, keys, shard_images=shard_images).build(keys, produce, bad=bad, progress=progress)
    report.left_out = list(dict.fromkeys([*listed, *report.left_out]))
    return report


def _first(files: FeatureFiles, bad: BadRecords) -> Regions:
    """The first image whose regions can be read; it says the sizes of all."""
    fault: DataError | None = None
    for key in files.keys:
        found = _read(files, key, "")
        if isinstance(found, Regions):
            return found
        fault = fault or found
        if not bad.skip:
            raise found
    raise fault or DataError("no features in it", where="features")


def _read(files: FeatureFiles, key: str, encoder: str) -> Regions | DataError:
    try:
        values, where = files.read(key)
        return regions_of(values, where, encoder)
    except DataError as error:
        return error


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """One image's JSON.

    Raises:
        DataError: it is none.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        several = "Extra data" in str(error)
        hint = "if it names feature files, a line for each image, give it by itself" if several else None
        raise DataError(
            f"not JSON, or cut short: {error}", where=where, hint=hint or "copy or download it again"
        ) from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", where=where)
    return found


class ZipFeatures:
    """A zip with one JSON for each image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = Archive(path)
        members = [name for name in self.archive.members() if name.lower().endswith(".json")]
        self._members = {ArchivePath("", name).stem: name for name in members}
        if not members:
            raise DataError("no .json in the archive", where=str(path), hint="one for each image")

    @property
    def keys(self) -> Sequence[str]:
        return list(self._members)

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        where = f"{self.path}@/{self._members[key]}"
        return parsed(self.archive.read(self._members[key]), where), where


class AnnotatedFeatures:
    """The feature files that an annotation file names, in archives or (where those are unpacked) folders."""

    def __init__(self, path: Path, bad: BadRecords) -> None:
        self.root = path.parent
        self._paths: dict[str, ArchivePath] = {}
        for where, row in read_rows(path, bad):
            value = row.get("frcnn")
            try:
                if not isinstance(value, str):
                    raise DataError("frcnn, the path of its features, is missing", where=where)
                named = ArchivePath.parse(value, where)
                if self._paths.setdefault(named.stem, named) != named:
                    raise DataError(f"two feature files are called {named.stem!r}", where=where)
            except DataError as error:
                bad.add(error)
        if not self._paths:
            raise DataError("no line names a feature file", where=str(path))

    @property
    def keys(self) -> Sequence[str]:
        return list(self._paths)

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        named = self._paths[key]
        archive = named.zip_file(self.root)
        if named.archive and archive.is_file():
            where = f"{archive}@/{named.member}"
            return parsed(open_archive(archive).read(named.member), where), where
        file = named.plain_file(self.root)
        return parsed(read_file(file), str(file)), str(file)


class FolderFeatures:
    """A folder with one ``.json``, ``.npz`` or ``.npy`` (with ``_info.npy`` beside it, as MMF writes) per image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = [p.relative_to(path).as_posix() for p in sorted(path.rglob("*")) if _is_feature_file(p)]
        if not files:
            raise DataError("no .json, .npy or .npz in the folder", where=str(path), hint="one for each image")
        self._files = {str(PurePosixPath(name).with_suffix("")): name for name in files}
        if len(self._files) != len(files):
            raise DataError("two files of one image in different formats", where=str(path), hint="keep one of them")

    @property
    def keys(self) -> Sequence[str]:
        return list(self._files)

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        from mmbert.compat.feature_arrays import read_arrays

        file = self.path / self._files[key]
        if file.suffix.lower() == ".json":
            return parsed(read_file(file), str(file)), str(file)
        return read_arrays(file), str(file)


def _is_feature_file(path: Path) -> bool:
    suffix = path.suffix.lower()
    return path.is_file() and (suffix in (".json", ".npz") or (suffix == ".npy" and not path.stem.endswith("_info")))


def read_file(path: Path) -> bytes:
    """Content of a file of one image.

    Raises:
        DataError: it cannot be read, or is of an absurd size.
    """
    try:
        if path.stat().st_size > LARGEST_MEMBER:
            raise DataError("more than 256 MB for one image", where=str(path), hint="not read")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint="check the path") from error


class TsvFeatures:
    """Bottom-up attention's table: a line for each image, features in base64."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, tuple[int, int]] = {}
        with path.open("rb") as file:
            start, number = 0, 0
            while line := file.readline(LARGEST_MEMBER):
                number += 1
                name, tab, _ = line.partition(b"\t")
                if line.strip() and not (number == 1 and name == b"image_id"):
                    self._add(name, bool(tab), start, number)
                start += len(line)
        if not self._lines:
            raise DataError("no lines", where=str(path))

    def _add(self, name: bytes, tab: bool, start: int, number: int) -> None:
        where = f"{self.path}:{number}"
        try:
            key = name.decode("ascii")
        except UnicodeDecodeError as error:
            raise DataError("not a table of features", where=where) from error
        if not tab or not key or key in self._lines:
            what = f"image {key!r} stands there twice" if key in self._lines else "a line without columns"
            raise DataError(what, where=where, hint=f"columns: {', '.join(TSV_COLUMNS)}")
        self._lines[key] = (start, number)

    @property
    def keys(self) -> Sequence[str]:
        return list(self._lines)

    def read(self, key: str) -> tuple[dict[str, Any], str]:
        start, number = self._lines[key]
        where = f"{self.path}:{number}"
        with self.path.open("rb") as file:
            file.seek(start)
            line = file.readline(LARGEST_MEMBER)
        cells = line.decode("ascii", "replace").rstrip("\r\n").split("\t")
        if len(cells) != len(TSV_COLUMNS):
            raise DataError(f"{len(cells)} columns", where=where, hint=f"columns: {', '.join(TSV_COLUMNS)}")
        return dict(zip(TSV_COLUMNS, cells, strict=True)), where


def check_direction(to: str) -> None:
    """Raises: UsageError: no format that is written."""
    if to not in ("store", "vlbert-json"):
        raise UsageError(f"cannot convert to {to!r}", hint="--to is store or vlbert-json")
