"""COCO captions in the official splits by year (2014 or 2017): photographs with five English sentences each.

``annotation``: ``image_id`` and ``sentence_ids`` (of ``captions["en"]``, in its order). Karpathy's splits:
``coco_captions``.
"""

from __future__ import annotations

from mmbert.data.corpus import CorpusCard, need
from mmbert.data.json_items import item_at, json_items, not_twice, text_entry, whole_number
from mmbert.data.official import (
    COCO_FOLDERS,
    CaptionRow,
    ImageOptions,
    Images,
    RowSource,
    chosen_splits,
    some,
)
from mmbert.data.records import BadRecords
from mmbert.errors import DataError

SPLITS = ("train2014", "val2014", "train2017", "val2017")
CARD = CorpusCard(
    title="COCO Captions (Chen et al., 2015), official splits of 2014 and 2017",
    where="https://cocodataset.org/#download",
    licence="annotations CC BY 4.0; the photographs belong to their Flickr authors",
    size="123,287 images with five captions each; 19 GB of images for either year",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train2014": {"records": 82_783, "images": 82_783, "captions": 414_113},
        "val2014": {"records": 40_504, "images": 40_504, "captions": 202_654},
        "train2017": {"records": 118_287, "images": 118_287},
        "val2017": {"records": 5_000, "images": 5_000},
    },
    files=("annotations/captions_train2014.json …", "train2014/ …"),
)


class Options(ImageOptions):
    """Options of COCO captions; see ``ImageOptions``. The two years divide the same images in two ways: use one."""

    split: str = "train2014"


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[CaptionRow]:
    """One record for each image.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    images = Images(options, CARD, COCO_FOLDERS)
    rows: list[CaptionRow] = []
    for split in chosen_splits(options.split, SPLITS, "coco_official"):
        rows += _official(options, split, images, report)
    some(rows, report, str(options.root))
    return RowSource(f"coco_official:{options.split}", ("en",), rows, CaptionRow.record, options.regions_by)


def _official(options: Options, split: str, images: Images, report: BadRecords) -> list[CaptionRow]:
    name = f"captions_{split}.json"
    path = need(options.root, CARD, f"annotations/{name}", name)
    pictures: dict[int, tuple[str, tuple[int, int], str]] = {}
    captions: dict[int, list[tuple[int, str]]] = {}
    places: dict[int, str] = {}
    files: set[str] = set()
    sentences: set[int] = set()
    for key, number, item in json_items(path):
        where = f"{path.name}:{item_at(key, number)}"
        try:
            if key == "images" and number:
                size = whole_number(item, "width", where), whole_number(item, "height", where)
                file = f"{split}/{text_entry(item, 'file_name', where)}"
                image_id = whole_number(item, "id", where)
                not_twice("image", image_id, pictures, where)
                not_twice("the image file", file, files, where)
                files.add(file)
                pictures[image_id] = file, size, where
            elif key == "annotations" and number:
                image_id = whole_number(item, "image_id", where)
                said = whole_number(item, "id", where), text_entry(item, "caption", where)
                not_twice("caption", said[0], sentences, where)
                sentences.add(said[0])
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
