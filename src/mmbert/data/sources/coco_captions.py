"""COCO captions: photographs with five English sentences each; Karpathy's splits, or the official ones by year.

``annotation``: ``image_id`` and ``sentence_ids`` (of ``captions["en"]``, in its order).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmbert.data.corpus import CorpusCard, need
from mmbert.data.json_items import item_at, json_items, text_entry, whole_number
from mmbert.data.karpathy import KARPATHY_SPLITS, WHERE, CaptionRow, karpathy_rows
from mmbert.data.official import COCO_FOLDERS, ImageOptions, Images, RowSource, chosen_splits, report_for, some
from mmbert.data.records import BadRecords
from mmbert.errors import ConfigError, DataError

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
        "train2014": {"records": 82_783, "images": 82_783, "captions": 414_113},
        "val2014": {"records": 40_504, "images": 40_504, "captions": 202_654},
        "train2017": {"records": 118_287, "images": 118_287},
        "val2017": {"records": 5_000, "images": 5_000},
    },
    files=("dataset_coco.json (Karpathy) or annotations/captions_train2014.json …", "train2014/", "val2014/"),
)
OFFICIAL_SPLITS = ("train2014", "val2014", "train2017", "val2017")
SPLITS = (*KARPATHY_SPLITS, *OFFICIAL_SPLITS)


class Options(ImageOptions):
    """Options of COCO captions; see ``ImageOptions``. ``train+restval`` is what retrieval models are trained on."""

    split: str = "train"


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[CaptionRow]:
    """One record for each image.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    report = report_for(options, report)
    splits = chosen_splits(options.split, SPLITS, "coco_captions")
    images = Images(options, CARD, COCO_FOLDERS)
    karpathy = [split for split in splits if split in KARPATHY_SPLITS]
    rows: list[CaptionRow] = []
    if karpathy and len(karpathy) < len(splits):
        raise ConfigError(f"{options.split}: Karpathy's splits and those by year hold the same images", hint="take one")
    if karpathy:
        card = replace(CARD, where=WHERE)
        path = need(options.root, card, *(f"{below}dataset_coco.json" for below in ("", "annotations/", "karpathy/")))
        rows += karpathy_rows(path, karpathy, images, _name, report)
    for split in splits:
        if split in OFFICIAL_SPLITS:
            rows += _official(options, split, images, report)
    return RowSource(
        f"coco_captions:{options.split}", ("en",), some(rows, report, str(options.root)), CaptionRow.record
    )


def _name(item: Any, where: str) -> str:
    return f"{text_entry(item, 'filepath', where)}/{text_entry(item, 'filename', where)}"


def _official(options: Options, split: str, images: Images, report: BadRecords) -> list[CaptionRow]:
    name = f"captions_{split}.json"
    path = need(options.root, CARD, f"annotations/{name}", name)
    pictures: dict[int, tuple[str, tuple[int, int], str]] = {}
    captions: dict[int, list[tuple[int, str]]] = {}
    places: dict[int, str] = {}
    for key, number, item in json_items(path):
        where = f"{path.name}:{item_at(key, number)}"
        try:
            if key == "images" and number:
                size = whole_number(item, "width", where), whole_number(item, "height", where)
                file = f"{split}/{text_entry(item, 'file_name', where)}"
                pictures[whole_number(item, "id", where)] = file, size, where
            elif key == "annotations" and number:
                image_id = whole_number(item, "image_id", where)
                said = whole_number(item, "id", where), text_entry(item, "caption", where)
                captions.setdefault(image_id, []).append(said)
                places.setdefault(image_id, where)
        except DataError as error:
            report.add(error)
    for image_id in captions.keys() - pictures.keys():
        report.add(DataError(f"a caption of image {image_id}, which is not listed", where=places[image_id]))
    rows = []
    for image_id, (file, size, where) in pictures.items():
        try:
            said_of = sorted(captions.get(image_id, []))
            if not said_of:
                raise DataError("an image without captions", where=where)
            annotation = {"image_id": image_id, "sentence_ids": [number for number, _ in said_of]}
            texts = tuple(text for _, text in said_of)
            rows.append(CaptionRow(images.ref(file, where), texts, split, annotation, where, size))
        except DataError as error:
            report.add(error)
    return rows
