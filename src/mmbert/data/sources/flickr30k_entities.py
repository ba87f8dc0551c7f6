"""Flickr30k Entities: the captions of Flickr30k with their phrases tied to boxes.

``annotation``: ``image_id``; ``phrases``: for each caption a list of ``{"text", "start", "end", "entity", "types",
"boxes"}`` (characters of the caption, number of the entity, numbers of ``record.boxes``); ``scene`` and ``no_box``:
entities that are the whole scene, or that have no box.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from mmbert.data.corpus import CorpusCard, need, need_all
from mmbert.data.json_items import not_twice
from mmbert.data.official import (
    CaptionRow,
    ImageOptions,
    Images,
    RowSource,
    box_within,
    chosen_splits,
    some,
)
from mmbert.data.records import BadRecords, RegionBox
from mmbert.data.sources.flickr30k import IMAGE_FOLDERS
from mmbert.errors import DataError

SPLITS = ("train", "val", "test")
CARD = CorpusCard(
    title="Flickr30k Entities (Plummer et al., ICCV 2015)",
    where="https://github.com/BryanPlummer/flickr30k_entities",
    licence="research and education, not commercial; the photographs belong to their Flickr authors",
    size="31,783 images, 158,915 captions, 275,775 boxes; 4 GB of images, 30 MB of annotations",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 29_783, "images": 29_783, "captions": 148_915},
        "val": {"records": 1_000, "images": 1_000, "captions": 5_000},
        "test": {"records": 1_000, "images": 1_000, "captions": 5_000},
    },
    files=("train.txt", "val.txt", "test.txt", "Sentences/", "Annotations/", "flickr30k-images/"),
)

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s\[\]/]+)*) ([^\[\]]*)\]")


class Options(ImageOptions):
    """Options of Flickr30k Entities; see ``ImageOptions``. The splits are its own, not Karpathy's."""

    split: str = "train"


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[CaptionRow]:
    """One record for each image.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    images = Images(options, CARD, IMAGE_FOLDERS)
    sentences, boxes = need_all(options.root, CARD, [("Sentences",), ("Annotations",)])
    rows: list[CaptionRow] = []
    taken: set[str] = set()
    for split in chosen_splits(options.split, SPLITS, "flickr30k_entities"):
        listed = need(options.root, CARD, f"{split}.txt")
        for number, line in enumerate(_read(listed).split("\n"), 1):
            if not line.strip():
                continue
            image_id, where = line.strip(), f"{listed.name}:{number}"
            try:
                not_twice("image", image_id, taken, where)
                rows.append(_row(image_id, split, sentences, boxes, images, where))
                taken.add(image_id)
            except DataError as error:
                report.add(error)
    return RowSource(
        f"flickr30k_entities:{options.split}",
        ("en",),
        some(rows, report, str(options.root)),
        CaptionRow.record,
        options.regions_by,
    )


def _row(image_id: str, split: str, sentences: Path, boxes: Path, images: Images, where: str) -> CaptionRow:
    if not re.fullmatch(r"[\w-]+", image_id):
        raise DataError(f"{image_id!r} is not the number of an image", where=where)
    image = images.ref(f"{image_id}.jpg", where)
    size, found, entities, scene, no_box = _boxes(boxes / f"{image_id}.xml")
    captions: list[str] = []
    phrases: list[list[dict[str, Any]]] = []
    text = _read(sentences / f"{image_id}.txt")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            caption, inside = parse_sentence(line.strip(), f"Sentences/{image_id}.txt:{number}")
            for phrase in inside:
                phrase["boxes"] = entities.get(phrase["entity"], [])
            captions.append(caption)
            phrases.append(inside)
    if not captions:
        raise DataError("no captions", where=f"Sentences/{image_id}.txt")
    names = {number: "/".join(p["types"]) for said in phrases for p in said for number in p["boxes"]}
    named = tuple(RegionBox(box, names.get(number, "")) for number, box in enumerate(found))
    annotation = {"image_id": image_id, "phrases": phrases, "scene": scene, "no_box": no_box}
    return CaptionRow(image, tuple(captions), split, annotation, where, size, named)


def parse_sentence(line: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """``[/EN#1/people A man] runs .`` -> ``A man runs .`` and its phrases (``boxes`` still to be added).

    Raises:
        DataError: markup that is not whole.
    """
    caption, end = "", 0
    phrases = []
    for found in _PHRASE.finditer(line):
        caption += line[end : found.start()]
        end = found.end()
        entity, types, text = found[1], found[2].split("/")[1:], found[3]
        start = len(caption)
        caption += text
        phrases.append({"text": text, "start": start, "end": len(caption), "entity": int(entity), "types": types})
    caption += line[end:]
    if "[/EN#" in caption or "/EN#" in caption:
        raise DataError("phrase markup that is not whole", where=where, hint="[/EN#number/type the phrase]")
    return caption, phrases


_Boxes = tuple[tuple[int, int], list[tuple[float, float, float, float]], dict[int, list[int]], list[int], list[int]]


def _boxes(path: Path) -> _Boxes:
    """Size of the image, its boxes, entity -> numbers of its boxes, entities that are the scene, those without box."""
    where = f"Annotations/{path.name}"
    text = _read(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # could unpack to any size
        raise DataError("declares entities of its own", where=where, hint="get the file again")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"not valid XML: {error}", where=where, hint="get the file again") from error
    size = _number(root, "size/width", where), _number(root, "size/height", where)
    boxes: list[tuple[float, float, float, float]] = []
    entities: dict[int, list[int]] = {}
    scene: list[int] = []
    no_box: list[int] = []
    for thing in root.iter("object"):
        names = [_whole(name.text, "object/name", where) for name in thing.findall("name")]
        if thing.find("bndbox") is not None:
            edges = [_number(thing, f"bndbox/{edge}", where) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for name in names:
                entities.setdefault(name, []).append(len(boxes))
            boxes.append(box_within((edges[0], edges[1], edges[2], edges[3]), size, where))
        if thing.findtext("scene") == "1":
            scene += names
        if thing.findtext("nobndbox") == "1":
            no_box += names
    return size, boxes, entities, scene, no_box


def _number(element: ElementTree.Element, path: str, where: str) -> int:
    return _whole(element.findtext(path), path, where)


def _whole(text: str | None, what: str, where: str) -> int:
    if text is None:
        raise DataError(f"<{what}> is missing", where=where)
    if not re.fullmatch(r"\s*-?\d{1,9}\s*", text):
        raise DataError(f"<{what}> holds {text.strip()!r}, not a whole number", where=where)
    return int(text)


def _read(path: Path) -> str:
    where = f"{path.parent.name}/{path.name}"
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason}", where=where, hint="get the file again") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=where, hint="get the files again") from error
