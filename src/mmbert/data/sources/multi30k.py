"""Multi30k: 31,000 Flickr30k images with captions in English, German, French and Czech."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, Words, find, need_all
from mmbert.data.lines import Lines, aligned
from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test_2016", "test_2017", "test_2018")
MORE_SPLITS = ("test_2017_mscoco",)  # only when asked for: its images are COCO's
RECORDS = {
    "train": 29000, "validation": 1014, "test_2016": 1000, "test_2017": 1000, "test_2018": 1071,
    "test_2017_mscoco": 461,
}  # fmt: skip
CARD = CorpusCard(
    title="Multi30K: Multilingual English-German Image Descriptions (Elliott et al. 2016); French 2017, Czech 2018",
    where="https://github.com/multi30k/dataset (captions); Flickr30k for the images",
    licence="names none; images: research and education only",
    size="33,085 images in five splits; 20 MB of captions, 4 GB of images",
    languages=("en", "de", "fr", "cs"),
    splits=SPLITS,
    counts={split: {"records": RECORDS[split]} for split in SPLITS},
    files=(
        "task1/raw/SPLIT.LANGUAGE.gz and task1/image_splits/SPLIT.txt",
        "or with task=2: task2/raw/SPLIT.1-5.LANGUAGE.gz and task2/image_splits/SPLIT_images.txt",
        "images=FOLDER: the Flickr30k images by file name (without it: the captions alone)",
    ),
)

_STEMS = {"train": "train", "validation": "val"} | {split: f"{split}_flickr" for split in SPLITS[2:]}
_WITHOUT = {1: {"test_2017": ("cs",), "test_2017_mscoco": ("cs",)}, 2: {}}  # task -> split -> what nobody published
_LANGUAGES = {1: ("en", "de", "fr", "cs"), 2: ("en", "de")}
_DESCRIPTIONS = 5


class Options(BaseModel):
    """Options of Multi30k.

    ``root``: the repository's ``data`` folder (or the repository). ``task``: 1, translations; 2, five independent
    descriptions in English and German. ``languages``: else all of the task. ``images``: folder of the Flickr30k images.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str = "train"
    task: Literal[1, 2] = 1
    languages: Words | None = None
    images: Path | None = None
    skip_bad: bool = False


class Multi30kSource:
    """One split: record i is line i of the list of images.

    Args:
        options: as opened.
        images: names of image files.
        captions: language -> files, line i of each about image i.
        rows: numbers of the usable lines.
    """

    def __init__(self, options: Options, images: Lines, captions: dict[str, list[Lines]], rows: np.ndarray) -> None:
        self.name = f"multi30k:{options.split}"
        self.languages = tuple(captions)
        self._options, self._images, self._captions, self._rows = options, images, captions, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Record:
        row = int(self._rows[index])
        name = self._images[row]
        folder = self._options.images
        first = next(iter(self._captions.values()))[0]
        return Record(
            id=name,
            image=ImageRef(path=str(folder.expanduser() / name), key=name) if folder is not None else None,
            captions={code: tuple(lines[row] for lines in files) for code, files in self._captions.items()},
            split=self._options.split,
            extra={"file_name": name},
            origin=first.where(row),
        )


def open_source(options: Options, *, report: BadRecords | None = None) -> Multi30kSource:
    """Open one split of one task.

    Raises:
        ConfigError: no such split or language in this task.
        MissingFiles: captions or the list of images are not there.
        DataError: files of different length, or a bad line.
    """
    report = report or BadRecords(skip=options.skip_bad)
    languages = _languages(options)
    stem = _stem(options)
    root = options.root.expanduser()
    if find(root, f"task{options.task}") is None and find(root, f"data/task{options.task}") is not None:
        root = root / "data"
    listed = f"{stem}.txt" if options.task == 1 else f"{stem}_images.txt"
    numbers = [f".{k}" for k in range(1, _DESCRIPTIONS + 1)] if options.task == 2 else [""]
    names = [f"image_splits/{listed}", *(f"raw/{stem}{k}.{code}" for code in languages for k in numbers)]
    images, *files = map(Lines, need_all(root, CARD, [[f"task{options.task}/{name}"] for name in names]))
    captions = {code: files[i * len(numbers) : (i + 1) * len(numbers)] for i, code in enumerate(languages)}
    columns = {f"{code}{i}": lines for code, files in captions.items() for i, lines in enumerate(files)}
    rows = aligned({"image": images, **columns}, report)
    for row in rows:
        if "/" in images[row] or images[row].startswith("."):
            raise DataError(f"{images[row]!r} is not the name of a file", where=images.where(int(row)))
    return Multi30kSource(options, images, captions, rows)


def published(options: Options) -> Mapping[str, int]:
    """Records, images where they are asked for, and captions in each language."""
    records = RECORDS.get(options.split, 0)
    each = records * (_DESCRIPTIONS if options.task == 2 else 1)
    images = {"images": records} if options.images is not None else {}
    return {"records": records, **images, **{f"captions_{code}": each for code in _languages(options)}}


def _languages(options: Options) -> tuple[str, ...]:
    known = _LANGUAGES[options.task]
    for code in options.languages or ():
        if code not in known:
            raise ConfigError(
                f"Multi30k's task {options.task} has no language {code!r}", hint=f"has {', '.join(known)}"
            )
    absent = _WITHOUT[options.task].get(options.split, ())
    found = tuple(code for code in options.languages or known if code not in absent)
    if not found:
        raise ConfigError(f"split {options.split!r} has no {', '.join(options.languages or ())}", hint="choose another")
    return found


def _stem(options: Options) -> str:
    known = (*SPLITS, *MORE_SPLITS) if options.task == 1 else SPLITS[:3]
    if options.split not in known:
        raise ConfigError(
            f"Multi30k's task {options.task} has no split {options.split!r}", hint=f"splits: {', '.join(known)}"
        )
    stem = _STEMS.get(options.split, options.split)
    return stem if options.task == 1 else stem.removesuffix("_flickr")
