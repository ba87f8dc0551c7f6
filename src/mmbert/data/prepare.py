"""From a corpus's official downloads to a store: one folder of records that commands and recipes open with ``--data``.

A corpus's file in ``data/sources`` reads the downloads; its records are counted, held against the published numbers,
and written as shards with ``corpus.json`` beside them. Nothing half-written stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from mmbert import plugins
from mmbert.data.corpus import CorpusCard, Counting, Difference, MissingFiles, Prepared, PreparedSplit
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.data.shards import ShardWriter
from mmbert.data.sources import check_options
from mmbert.data.sources.prepared import ABOUT
from mmbert.errors import ConfigError, DataError, ImageError

SOURCES = "mmbert.data.sources"

Progress = Callable[[str, int, int], None]
"""Called with the split, the records written and the records there are."""


def corpus_module(name: str) -> tuple[ModuleType, CorpusCard]:
    """The file of a corpus and its card.

    Raises:
        ConfigError: no such corpus, or it is a format of the user's own data, which needs no preparing.
    """
    module = plugins.load(SOURCES, name)
    card = getattr(module, "CARD", None)
    if card is None:
        raise ConfigError(f"{name!r} is opened as it is; there is nothing to prepare", hint="see docs/own-data.md")
    return module, card


def prepare(
    name: str,
    downloads: Path,
    out: Path,
    options: Mapping[str, Any] | None = None,
    *,
    skip_bad: BadRecords | bool = False,
    allow_incomplete: bool = False,
    copy_images: bool = False,
    embed_images: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Make the store of a corpus.

    Args:
        name: of the corpus.
        downloads: folder of the official downloads (``root`` of the corpus's options).
        out: the store's folder; must not exist yet.
        options: further options of the corpus; ``split`` may name several, with commas.
        skip_bad: leave out records that cannot be used, or images that are missing.
        allow_incomplete: go on where splits are missing or counts are not the published ones.
        copy_images: copy the images into the store instead of pointing at them.
        embed_images: write them into the shards themselves, for a store that is to be streamed.
        progress: told how far it is.

    Raises:
        ConfigError: unknown corpus or option, or images are to be copied and embedded.
        DataError: ``out`` exists, something is missing or damaged, or counts differ.
    """
    if copy_images and embed_images:
        raise ConfigError("images are copied beside the shards or embedded in them, not both", hint="choose one")
    module, card = corpus_module(name)
    report = skip_bad if isinstance(skip_bad, BadRecords) else BadRecords(skip=skip_bad)
    given = {**(options or {}), "root": downloads}
    splits = _splits(name, module, given, given.pop("split", None))
    first = check_options(name, module, _with_split(given, splits[0]))
    root = _image_root(first)
    shown = {key: value for key, value in first.model_dump(mode="json").items() if key not in ("root", "split")}
    about = Prepared(name, card.as_dict(), shown, None)
    with _aside(out) as folder:
        images = folder / "images" if copy_images else None
        run = _Run(module, card, folder, root, images, report, progress, embed_images)
        for split in splits:
            try:
                about.splits.update(run.write(split, check_options(name, module, _with_split(given, split))))
            except MissingFiles as error:
                about.missing += [missing for missing in error.missing if missing not in about.missing]
        about.left_out = len(report)
        _judge(about, downloads, card, allow_incomplete)
        if run.has_images and not embed_images:
            about.images = "images" if copy_images else str(root)
        text = json.dumps(about.as_dict(), ensure_ascii=False, indent=1, default=str)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    return about


def links_of(
    name: str, downloads: Path, options: Mapping[str, Any], report: BadRecords, *, most: int | None = None
) -> Iterator[tuple[str, str, str]]:
    """The images that a corpus knows by address, one after the other: file name, address, and file and line.

    Args:
        most: only so many of each split.

    Raises:
        ConfigError: the corpus gives no addresses, or an option is wrong.
        DataError: a table is missing, or has a bad line that is not skipped.
    """
    module, _ = corpus_module(name)
    if not hasattr(module, "links"):
        raise ConfigError(f"{name!r} gives no addresses of images", hint=f"see `mmbert data list {name}`")
    given = {**options, "root": downloads}
    splits = _splits(name, module, given, given.pop("split", None))
    checked = [check_options(name, module, _with_split(given, split)) for split in splits]
    return (link for split in checked for link in islice(module.links(split, report), most))


def _with_split(options: Mapping[str, Any], split: str | None) -> dict[str, Any]:
    return {**options, "split": split} if split is not None else dict(options)


def _splits(name: str, module: ModuleType, options: Mapping[str, Any], given: Any) -> Sequence[str | None]:
    """The splits asked for, else all that the corpus has (None: it has none)."""
    known = tuple(getattr(module, "SPLITS", ()))
    if not known and given is None and hasattr(module, "find_splits"):
        known = tuple(module.find_splits(check_options(name, module, options)))
    if given is None:
        return known or (None,)
    known += tuple(getattr(module, "MORE_SPLITS", ()))
    several = isinstance(given, (list, tuple))  # else a name, several with commas between, or a number (2016)
    wanted = [str(split) for split in given] if several else str(given).replace(",", " ").split()
    for split in wanted:
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise ConfigError(f"{split!r} is no name for a split", hint="use letters, digits, _ and -")
        if known and split not in known:
            close = plugins.nearest(split, known)
            hint = f"did you mean {close!r}?" if close else f"splits: {', '.join(known)}"
            raise ConfigError(f"the corpus has no split {split!r}", hint=hint)
    return list(dict.fromkeys(wanted))


def _image_root(options: BaseModel) -> Path:
    """Where image paths start: the option ``images`` of the corpus, else its downloads."""
    images = getattr(options, "images", None)
    return Path(os.path.abspath(Path(images or options.root).expanduser()))  # type: ignore[attr-defined]  # noqa: PTH100


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``out`` when all went well, and removed when not."""
    if out.exists():
        raise DataError("exists already", where=str(out), hint="remove it, or give the name of a new folder")
    if not out.parent.is_dir():
        raise DataError("no such folder", where=str(out.parent), hint="create it first")
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(out.parent)) from error
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp's folders are for their owner alone
        aside.rename(out)
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"cannot be written: {error.strerror}", where=str(out)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Run:
    """One run of ``prepare``: writes split after split.

    Args:
        root: folder that image paths are stored relative to.
        copies: where to copy images to, or None.
        embed: write images into the shards.
    """

    def __init__(
        self,
        module: ModuleType,
        card: CorpusCard,
        folder: Path,
        root: Path,
        copies: Path | None,
        report: BadRecords,
        progress: Progress | None,
        embed: bool,
    ) -> None:
        self.embed = embed
        self.module, self.card, self.folder, self.root, self.copies = module, card, folder, root, copies
        self.report, self.progress = report, progress
        self.has_images = False
        self._there: set[str] = set()

    def write(self, split: str | None, options: BaseModel) -> dict[str, PreparedSplit]:
        """Write one split.

        Raises:
            MissingFiles: its downloads are not there.
            DataError: a bad record, unless they are skipped.
        """
        name = split or "all"
        source = self.module.open_source(options, report=self.report)
        counting = Counting(getattr(self.module, "count", None))
        writer = ShardWriter(self.folder, name)
        for number in range(len(source)):
            try:
                record = source[number]
                image = self._image(record)
                if self.embed and image is not None:
                    record, image = _with_pixels(record, image), None
                writer.add(record, image)
            except DataError as error:
                self.report.add(error)
            else:
                counting.add(record)
            done = number + 1
            if self.progress is not None and (done % 500 == 0 or done == len(source)):
                self.progress(name, done, len(source))
        shards = writer.close()
        if not shards:
            raise DataError(f"no usable record in split {name!r}", where=str(self.root), hint="see docs/corpora.md")
        published = dict(_published(self.module, self.card, options, name))
        counts = counting.counts() | dict(getattr(source, "counts", {}))
        return {name: PreparedSplit(counts, published, list(counting.languages), shards)}

    def _image(self, record: Record) -> str | None:
        """Path to store for the record's image; makes sure that it is there, and copies it where that is asked for."""
        if record.image is None or record.image.path is None:
            return None
        path = os.path.abspath(record.image.path)  # noqa: PTH100 (resolve() would follow links)
        inside = os.path.relpath(path, self.root)
        if Path(inside).parts[:1] == (os.pardir,):
            inside = (
                path if self.copies is None else f"{hashlib.sha256(path.encode()).hexdigest()[:16]}{Path(path).suffix}"
            )
        self.has_images = True
        if path not in self._there:
            if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on a null byte)
                hint = "get the missing images, or leave such records out with --skip-bad"
                raise ImageError(f"no image {inside}", where=record.origin, hint=hint)
            self._there.add(path)
            if self.copies is not None:
                copy = self.copies / inside
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        return inside


def _with_pixels(record: Record, inside: str) -> Record:
    """The record with its image file's content; its key stays what it is in a store that points at images."""
    assert record.image is not None
    path = str(record.image.path)
    key = inside if record.image.key == path else record.image.key
    return replace(record, image=ImageRef(data=Path(path).read_bytes(), key=key))


def _published(module: ModuleType, card: CorpusCard, options: BaseModel, split: str) -> Mapping[str, int]:
    """The published counts of a split: of its card, unless the corpus's file knows better for these options."""
    decide = getattr(module, "published", None)
    found: Mapping[str, int] = decide(options) if decide is not None else card.counts.get(split, {})
    return found


def _judge(about: Prepared, downloads: Path, card: CorpusCard, allow_incomplete: bool) -> None:
    """Note what is missing and what differs.

    Raises:
        MissingFiles, DataError: something is or does, and that is not allowed; or nothing is there at all.
    """
    if about.missing and (not allow_incomplete or not about.splits):
        raise MissingFiles(about.missing, downloads, card)
    about.differences = [
        Difference(name, what, split.counts.get(what, 0), number)
        for name, split in about.splits.items()
        for what, number in split.published.items()
        if split.counts.get(what, 0) != number
    ]
    if about.differences and not allow_incomplete:
        more = f" (and {len(about.differences) - 3} more)" if len(about.differences) > 3 else ""
        left_out = f"; {about.left_out:,} bad records were left out" if about.left_out else ""
        raise DataError(
            "not the published numbers: " + "; ".join(map(str, about.differences[:3])) + more + left_out,
            where=str(downloads),
            hint="download it again, or go on all the same with --allow-incomplete",
        )
