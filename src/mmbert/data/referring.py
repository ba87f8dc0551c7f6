"""Referring expressions (RefCOCO, RefCOCO+, RefCOCOg): one layout, read here for the three corpora.

``refs(unc).p`` says which expressions mean which object, ``instances.json`` has the objects of each image, and the
detections of MAttNet are candidates found without them. Records come out, one for each expression.

``boxes``: the candidates. ``annotation``: ``expression`` (as models get it), ``raw`` (as it was typed), ``box`` (the
true one), ``target`` (its number among ``boxes``; None where these are detections alone), ``sent_id``, ``ref_id``,
``ann_id``, ``image_id``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import field_validator

from mmbert.data.corpus import CorpusCard, need, need_all
from mmbert.data.json_items import item_at, json_items, list_entry, not_twice, text_entry, whole_number
from mmbert.data.metadata import kind_of
from mmbert.data.official import (
    COCO_FOLDERS,
    ImageOptions,
    Images,
    RowSource,
    box_of_corner_and_size,
    chosen_splits,
    some,
)
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.data.safe_pickle import read_pickle
from mmbert.errors import DataError

DETECTIONS = "res101_coco_minus_refer_notime_dets.json"
LICENCE = "see the page; objects are COCO's (CC BY 4.0), the photographs belong to their Flickr authors"
WHERE = "https://github.com/lichengunc/refer"


class ReferringOptions(ImageOptions):
    """Options of referring expressions, beside those of ``ImageOptions``.

    ``candidates``: which boxes the true one is to be found among: the image's ``objects``, ``detections`` (of
    MAttNet; the option ``detections`` names the file where it is elsewhere), or ``detections+objects``, all of both.
    """

    split: str = "train"
    candidates: Literal["objects", "detections", "detections+objects"] = "objects"
    detections: Path | None = None

    @field_validator("detections")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()


class _Picture(NamedTuple):
    file: str
    size: tuple[int, int]


class Objects:
    """Images and the objects in them, as ``instances.json`` lists them.

    Args:
        path: the file.
        report: gets the objects that cannot be used; they are left out then.
    """

    def __init__(self, path: Path, report: BadRecords) -> None:
        self.images: dict[int, _Picture] = {}
        self.boxes: dict[int, list[RegionBox]] = {}
        self.place: dict[int, tuple[int, int]] = {}  # id of an object -> its image, its number among the image's boxes
        names: dict[int, str] = {}
        found: list[tuple[int, int, int, Any, str]] = []
        for key, number, item in json_items(path):
            where = f"{path.name}:{item_at(key, number)}"
            try:
                if key == "images" and number:
                    size = whole_number(item, "width", where), whole_number(item, "height", where)
                    picture = _Picture(text_entry(item, "file_name", where), size)
                    picture_id = whole_number(item, "id", where)
                    not_twice("image", picture_id, self.images, where)
                    self.images[picture_id] = picture
                elif key == "categories" and number:
                    names[whole_number(item, "id", where)] = text_entry(item, "name", where)
                elif key == "annotations" and number:
                    ann_id, image_id, category = (
                        whole_number(item, name, where) for name in ("id", "image_id", "category_id")
                    )
                    found.append((ann_id, image_id, category, list_entry(item, "bbox", where, 4), where))
            except DataError as error:
                report.add(error)
        for ann_id, image_id, category, values, where in found:
            try:
                if image_id not in self.images:
                    raise DataError(f"an object of image {image_id}, which is not listed", where=where)
                not_twice("object", ann_id, self.place, where)
                if category not in names:
                    raise DataError(f"category {category} is not listed", where=where)
                box = box_of_corner_and_size(values, self.images[image_id].size, where)
            except DataError as error:
                report.add(error)
                continue
            beside = self.boxes.setdefault(image_id, [])
            self.place[ann_id] = image_id, len(beside)
            beside.append(RegionBox(box, names[category]))

    def detections(self, path: Path, report: BadRecords) -> dict[int, list[RegionBox]]:
        """MAttNet's detections by image: one array of ``{box: [x, y, width, height], image_id, category_name, score}``.

        Raises:
            DataError: the file or an item is damaged, and ``report`` does not skip.
        """
        found: dict[int, list[RegionBox]] = {}
        for key, number, item in json_items(path):
            where = f"{path.name}:{item_at(key, number)}"
            try:
                if not number:
                    raise DataError(f"{key!r} where a list of detections belongs", where=path.name)
                image_id = whole_number(item, "image_id", where)
                if image_id not in self.images:
                    raise DataError(f"a detection in image {image_id}, which is not listed", where=where)
                box = box_of_corner_and_size(list_entry(item, "box", where, 4), self.images[image_id].size, where)
                score = item.get("score")
                if score is not None and not isinstance(score, (int, float)):
                    raise DataError(f"'score' holds {kind_of(score)}, not a number", where=where)
                found.setdefault(image_id, []).append(RegionBox(box, str(item.get("category_name", "")), score=score))
            except DataError as error:
                report.add(error)
        return found


class ExpressionRow(NamedTuple):
    """One expression and the object that it means."""

    sent_id: int
    expression: str
    raw: str
    ref_id: int
    ann_id: int
    image_id: int
    image: ImageRef
    split: str
    origin: str


def open_expressions(
    options: ReferringOptions,
    *,
    name: str,
    folder: str,
    by: str,
    splits: Sequence[str],
    card: CorpusCard,
    report: BadRecords | None,
) -> RowSource[ExpressionRow]:
    """Open one of the three corpora.

    Args:
        options: what to open.
        name: of the source, for messages.
        folder: of the corpus in the download, e.g. ``refcoco+``.
        by: who made the splits: ``unc``, ``google`` or ``umd``.
        splits: that there are.
        card: of the corpus.
        report: decides about bad records.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    wanted = chosen_splits(options.split, splits, name)
    below = (f"{folder}/", "")
    refs = [f"{b}refs({by}).{end}" for b in below for end in ("p", "json")]
    path, instances = need_all(options.root, card, [refs, [f"{b}instances.json" for b in below]])
    objects = Objects(instances, report)
    candidates, detected = objects.boxes, dict[int, list[RegionBox]]()
    if options.candidates != "objects":
        places = (f"detections/{folder}_{by}/{DETECTIONS}", f"{folder}/proposal/{DETECTIONS}", DETECTIONS)
        found = options.detections or need(options.root, card, *places)
        candidates = detected = objects.detections(found, report)
    if options.candidates == "detections+objects":
        candidates = {image_id: detected.get(image_id, []) + own for image_id, own in objects.boxes.items()}
    images = Images(options, card, COCO_FOLDERS)
    rows: list[ExpressionRow] = []
    taken: set[int] = set()
    for where, item in _refs(path):
        try:
            split = text_entry(item, "split", where)
            if split in wanted:
                found_rows = _rows(item, split, objects, candidates, images, where)
                for row in found_rows:
                    if row.sent_id in taken:
                        raise DataError(f"sentence {row.sent_id} is there twice", where=where)
                    taken.add(row.sent_id)
                rows += found_rows
        except DataError as error:
            report.add(error)

    def record(row: ExpressionRow) -> Record:
        image_id, number = objects.place[row.ann_id]
        true = objects.boxes[image_id][number]
        annotation = {
            "expression": row.expression,
            "raw": row.raw,
            "box": list(true.box),
            "target": None if options.candidates == "detections" else len(detected.get(image_id, ())) + number,
            "sent_id": row.sent_id,
            "ref_id": row.ref_id,
            "ann_id": row.ann_id,
            "image_id": row.image_id,
        }
        return Record(
            id=str(row.sent_id),
            image=row.image,
            split=row.split,
            group=row.image.key,
            origin=row.origin,
            size=objects.images[image_id].size,
            boxes=tuple(candidates[image_id]),
            annotation=annotation,
        )

    return RowSource(f"{name}:{options.split}", (), some(rows, report, str(path)), record, options.regions_by)


def _refs(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".p":
        found = read_pickle(path)
        if not isinstance(found, list):
            raise DataError(f"holds {kind_of(found)}, not a list of references", where=str(path))
        for number, item in enumerate(found, 1):
            yield f"{path.name}:{item_at('', number)}", item
    else:
        for key, number, item in json_items(path):
            if not number:
                raise DataError(f"{key!r} where a list of references belongs", where=path.name)
            yield f"{path.name}:{item_at(key, number)}", item


def _rows(
    item: Any,
    split: str,
    objects: Objects,
    candidates: dict[int, list[RegionBox]],
    images: Images,
    where: str,
) -> list[ExpressionRow]:
    ann_id, image_id = whole_number(item, "ann_id", where), whole_number(item, "image_id", where)
    if ann_id not in objects.place:
        raise DataError(f"object {ann_id} is not listed with a usable box", where=where)
    if objects.place[ann_id][0] != image_id:
        raise DataError(f"object {ann_id} is in image {objects.place[ann_id][0]}, not in {image_id}", where=where)
    if not candidates.get(image_id):
        raise DataError(f"image {image_id} has no detections", where=where)
    image = images.ref(f"train2014/{objects.images[image_id].file}", where)
    ref_id = whole_number(item, "ref_id", where)
    return [
        ExpressionRow(
            whole_number(said, "sent_id", where),
            text_entry(said, "sent", where),
            text_entry(said, "raw" if "raw" in said else "sent", where),
            ref_id,
            ann_id,
            image_id,
            image,
            split,
            where,
        )
        for said in list_entry(item, "sentences", where)
    ]
