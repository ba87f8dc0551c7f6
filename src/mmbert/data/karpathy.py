"""The splits of Karpathy and Fei-Fei (2015) that retrieval and captioning results are reported on.

One file ``dataset_NAME.json`` for each corpus goes in: its images, each with its captions and its split; rows come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmbert.data.corpus import CorpusCard, need
from mmbert.data.json_items import entry, item_at, json_items, list_entry, text_entry, whole_number
from mmbert.data.official import CaptionRow, ImageOptions, Images, RowSource, chosen_splits, some
from mmbert.data.records import BadRecords, ImageRef
from mmbert.errors import DataError

KARPATHY_SPLITS = ("train", "restval", "val", "test")
PAPER = "Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015"
WHERE = "https://cs.stanford.edu/people/karpathy/deepimagesent/"


def karpathy_source(
    options: ImageOptions,
    card: CorpusCard,
    name: str,
    files: Sequence[str],
    folders: Sequence[str],
    name_of: Callable[[Any, str], str],
    report: BadRecords | None,
) -> RowSource[CaptionRow]:
    """A corpus in Karpathy's splits, one record for each image.

    Args:
        options: of the corpus.
        card: of the corpus.
        name: of the corpus.
        files: where ``dataset_NAME.json`` may be, below the folder of downloads.
        folders: where images may be, below the same.
        name_of, report: as for :func:`karpathy_rows`; None follows the options.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    splits = chosen_splits(options.split, card.splits, name)
    path = need(options.root, replace(card, where=WHERE), *files)
    rows = some(karpathy_rows(path, splits, Images(options, card, folders), name_of, report), report, str(path))
    return RowSource(f"{name}:{options.split}", ("en",), rows, CaptionRow.record, options.regions_by)


def karpathy_rows(
    path: Path, splits: Sequence[str], images: Images, name_of: Callable[[Any, str], str], report: BadRecords
) -> list[CaptionRow]:
    """Read ``dataset_NAME.json``.

    Args:
        path: the file.
        splits: keep these.
        name_of: item and its place -> name of its image.
        report: gets the images that cannot be used.

    Raises:
        DataError: an item is damaged or an image missing, and ``report`` does not skip.
    """
    rows: list[CaptionRow] = []
    taken: set[str] = set()
    for key, number, item in json_items(path):
        if key != "images" or not number:
            continue
        where = f"{path.name}:{item_at(key, number)}"
        try:
            split = text_entry(item, "split", where)
            if split not in KARPATHY_SPLITS:
                raise DataError(f"unknown split {split!r}", where=where, hint=f"known: {', '.join(KARPATHY_SPLITS)}")
            if split in splits:
                row = _row(item, split, images.ref(name_of(item, where), where), where)
                if row.image.key in taken:
                    raise DataError(f"image {row.image.key} is listed twice", where=where)
                taken.add(row.image.key)
                rows.append(row)
        except DataError as error:
            report.add(error)
    return rows


def _row(item: Any, split: str, image: ImageRef, where: str) -> CaptionRow:
    sentences = list_entry(item, "sentences", where)
    captions = tuple(text_entry(sentence, "raw", where) for sentence in sentences)
    if not captions:
        raise DataError("an image without captions", where=where)
    annotation = {"sentence_ids": [whole_number(sentence, "sentid", where) for sentence in sentences]}
    annotation["image_id"] = entry(item, "cocoid" if "cocoid" in item else "imgid", where)
    return CaptionRow(image, captions, split, annotation, where)
