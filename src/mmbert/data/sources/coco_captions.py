"""COCO captions in Karpathy's splits: photographs with five English sentences each.

``annotation``: ``image_id`` and ``sentence_ids`` (of ``captions["en"]``, in its order). The splits by year:
``coco_official``.
"""

from __future__ import annotations

from typing import Any

from mmbert.data.corpus import CorpusCard
from mmbert.data.json_items import text_entry
from mmbert.data.karpathy import KARPATHY_SPLITS, karpathy_source
from mmbert.data.official import COCO_FOLDERS, CaptionRow, ImageOptions, RowSource
from mmbert.data.records import BadRecords

CARD = CorpusCard(
    title="COCO Captions (Chen et al., 2015), splits of Karpathy and Fei-Fei (2015)",
    where="https://cocodataset.org/#download",
    licence="annotations CC BY 4.0; the photographs belong to their Flickr authors",
    size="123,287 images with five captions each; 19 GB of images",
    languages=("en",),
    splits=KARPATHY_SPLITS,
    counts={
        "train": {"records": 82_783, "images": 82_783},
        "restval": {"records": 30_504, "images": 30_504},
        "val": {"records": 5_000, "images": 5_000, "captions": 25_010},
        "test": {"records": 5_000, "images": 5_000, "captions": 25_010},
    },
    files=("dataset_coco.json (Karpathy)", "train2014/", "val2014/"),
)
SPLITS = KARPATHY_SPLITS


class Options(ImageOptions):
    """Options of COCO captions; see ``ImageOptions``. ``train+restval`` is what retrieval models are trained on."""

    split: str = "train"


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[CaptionRow]:
    """One record for each image.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    files = [f"{below}dataset_coco.json" for below in ("", "annotations/", "karpathy/")]
    return karpathy_source(options, CARD, "coco_captions", files, COCO_FOLDERS, _name, report)


def _name(item: Any, where: str) -> str:
    return f"{text_entry(item, 'filepath', where)}/{text_entry(item, 'filename', where)}"
