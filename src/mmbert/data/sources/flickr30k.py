"""Flickr30k: photographs of people and animals with five English sentences each, in Karpathy's splits.

``annotation``: ``image_id`` (of Karpathy's file) and ``sentence_ids``. Phrases with boxes: ``flickr30k_entities``.
"""

from __future__ import annotations

from typing import Any

from mmbert.data.corpus import CorpusCard
from mmbert.data.json_items import text_entry
from mmbert.data.karpathy import karpathy_source
from mmbert.data.official import CaptionRow, ImageOptions, RowSource
from mmbert.data.records import BadRecords

SPLITS = ("train", "val", "test")
IMAGE_FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "flickr30k-images/flickr30k-images", "")
CARD = CorpusCard(
    title="Flickr30k (Young et al., TACL 2014), splits of Karpathy and Fei-Fei (2015)",
    where="https://shannon.cs.illinois.edu/DenotationGraph/",
    licence="research and education, not commercial; the photographs belong to their Flickr authors",
    size="31,014 of 31,783 images with five captions each; 4 GB of images",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 29_000, "images": 29_000, "captions": 145_000},
        "val": {"records": 1_014, "images": 1_014, "captions": 5_070},
        "test": {"records": 1_000, "images": 1_000, "captions": 5_000},
    },
    files=("dataset_flickr30k.json (Karpathy)", "flickr30k-images/"),
)


class Options(ImageOptions):
    """Options of Flickr30k; see ``ImageOptions``."""

    split: str = "train"


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[CaptionRow]:
    """One record for each image.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    files = [f"{below}dataset_flickr30k.json" for below in ("", "karpathy/")]
    return karpathy_source(options, CARD, "flickr30k", files, IMAGE_FOLDERS, _name, report)


def _name(item: Any, where: str) -> str:
    return text_entry(item, "filename", where)
