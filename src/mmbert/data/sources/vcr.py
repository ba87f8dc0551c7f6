"""VCR: questions about film stills with four answers and four reasons each; people and objects have boxes and outlines.

``boxes``: the detected objects, with name, outlines and score. ``annotation``: ``question``; ``answer_choices`` and
``rationale_choices`` (four each); ``answer_label`` and ``rationale_label`` (not in the test split); ``annot_id``. Texts
are lists of tokens; a token is a word, or a list of numbers of ``boxes``.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mmbert.data.corpus import CorpusCard, need
from mmbert.data.json_items import finite_numbers, list_entry, text_entry, whole_number
from mmbert.data.metadata import kind_of
from mmbert.data.official import ImageOptions, Images, RowSource, box_within, chosen_splits, some
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
CHOICES = 4
OBJECTS = (
    "person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign parkingmeter bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis "
    "snowboard sportsball kite baseballbat baseballglove skateboard surfboard tennisracket bottle wineglass cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch pottedplant bed "
    "diningtable toilet tv laptop mouse remote keyboard cellphone microwave oven toaster sink refrigerator book clock "
    "vase scissors teddybear hairdrier toothbrush"
).split()
"""COCO's 80 object classes as VCR writes them; class 0, before the first, is the image as a whole."""
CARD = CorpusCard(
    title="VCR v1.0, visual commonsense reasoning (Zellers et al., CVPR 2019)",
    where="https://visualcommonsense.com/download.html",
    licence="its own agreement: research, not commercial, no redistribution of the film stills",
    size="264,720 questions about 99,904 film stills; 100 GB of images",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 212_923, "images": 80_418},
        "val": {"records": 26_534, "images": 9_929},
        "test": {"records": 25_263, "images": 9_557},
    },
    files=("train.jsonl", "val.jsonl", "test.jsonl", "vcr1images/"),
)


class Options(ImageOptions):
    """Options of VCR; see ``ImageOptions``.

    ``check_boxes: false`` does not read every image's boxes when the corpus is opened (some minutes for all of them),
    but when its records are; faults then stop whoever reads.
    """

    split: str = "train"
    check_boxes: bool = True


class _Place(NamedTuple):
    """Where a question stands: its text is read again when its record is asked for."""

    split: str
    line: int
    offset: int


class Metadata(NamedTuple):
    """What ``NAME.json`` says about an image."""

    size: tuple[int, int]
    boxes: tuple[RegionBox, ...]


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[_Place]:
    """One record for each question; it serves both steps (question to answer, question and answer to reason).

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    if options.regions_by != "file":
        raise ConfigError("VCR does not number its images", hint="leave regions_by out")
    report = report or BadRecords(skip=options.skip_bad)
    splits = chosen_splits(options.split, SPLITS, "vcr")
    corpus = _Corpus(options, {split: need(options.root, CARD, f"{split}.jsonl") for split in splits})
    places: list[_Place] = []
    taken: set[str] = set()
    for split in splits:
        for place in corpus.lines(split):
            where = corpus.where(place)
            try:
                record = corpus.record(place, boxes=options.check_boxes)
                if record.id in taken:
                    raise DataError(f"annot_id {record.id!r} is there twice", where=where)
            except DataError as error:
                report.add(error)
            else:
                taken.add(record.id)
                places.append(place)
    return RowSource(f"vcr:{options.split}", (), some(places, report, str(options.root)), corpus.record)


class _Corpus:
    """Reads questions by their place, and metadata by its name (the last images' are kept)."""

    def __init__(self, options: Options, files: dict[str, Path]) -> None:
        self._files = files
        self._images = Images(options, CARD, ("vcr1images", "vcr1/vcr1images"))
        self._metadata = lru_cache(maxsize=256)(self._read_metadata)  # a still has about three questions in a row

    def where(self, place: _Place) -> str:
        return f"{place.split}.jsonl:{place.line}"

    def lines(self, split: str) -> Iterator[_Place]:
        path, offset = self._files[split], 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _Place(split, number, offset)
                    offset += len(line)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error

    def record(self, place: _Place, *, boxes: bool = True) -> Record:
        where = self.where(place)
        row = self._row(place, where)
        image = self._images.ref(text_entry(row, "img_fn", where), where)
        objects = [str(name) for name in list_entry(row, "objects", where)]
        metadata = Metadata((0, 0), ())
        if boxes:
            name = text_entry(row, "metadata_fn", where)
            metadata = self._metadata(posixpath.normpath(name), self._beside(image, name, where))
            names = [box.name for box in metadata.boxes]
            if names != objects:
                raise DataError(f"{len(objects)} objects, but {name} has others ({len(names)})", where=where)
        return Record(
            id=text_entry(row, "annot_id", where),
            image=image,
            split=place.split,
            group=image.key,
            origin=where,
            size=metadata.size if boxes else None,
            boxes=metadata.boxes,
            annotation=_annotation(row, len(objects), place.split != "test", where),
        )

    def _row(self, place: _Place, where: str) -> Any:
        try:
            with self._files[place.split].open("rb") as file:
                file.seek(place.offset)
                return json.loads(file.readline())
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=where) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON: {error}", where=where, hint="get the file again") from error

    def _beside(self, image: ImageRef, name: str, where: str) -> Path:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise DataError(f"{name!r} lies outside of the folder of images", where=where)
        assert image.path is not None
        return Path(image.path.removesuffix(image.key)) / name

    def _read_metadata(self, name: str, path: Path) -> Metadata:
        try:
            found = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=name, hint="unpack the images again") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON: {error}", where=name, hint="unpack the images again") from error
        size = whole_number(found, "width", name), whole_number(found, "height", name)
        names = list_entry(found, "names", name)
        boxes = list_entry(found, "boxes", name, len(names))
        outlines = list_entry(found, "segms", name, len(names))
        return Metadata(
            size,
            tuple(
                _region(box, str(label), segments, size, f"{name}:boxes[{number}]")
                for number, (box, label, segments) in enumerate(zip(boxes, names, outlines, strict=True), 1)
            ),
        )


def object_class(record: Record, number: int) -> int:
    """The class, 1 to 80, of one of a record's objects.

    Raises:
        DataError: its name is none of COCO's.
    """
    name = record.boxes[number].name.replace(" ", "").lower()
    if name not in OBJECTS:
        raise DataError(
            f"object {number} is a {record.boxes[number].name!r}, which is no class of COCO",
            where=record.origin or record.id,
            hint="leave the objectives region_class and feature_class out",
        )
    return OBJECTS.index(name) + 1


def _region(box: Any, name: str, outlines: Any, size: tuple[int, int], where: str) -> RegionBox:
    numbers = finite_numbers(box, "the box", where)
    if len(numbers) not in (4, 5):
        raise DataError(f"the box has {len(numbers)} numbers, not x1, y1, x2, y2 and score", where=where)
    x1, y1, x2, y2 = numbers[:4]
    if not isinstance(outlines, list) or not all(isinstance(outline, list) for outline in outlines):
        raise DataError(f"the outlines are {kind_of(outlines)}, not lists of points", where=where)
    polygons = []
    for outline in outlines:
        points = [finite_numbers(point, "a point of the outline", where) for point in outline]
        if any(len(point) != 2 for point in points):
            raise DataError("a point of the outline is not x and y", where=where)
        polygons.append(tuple(value for point in points for value in point))
    score = numbers[4] if len(numbers) == 5 else None
    return RegionBox(box_within((x1, y1, x2, y2), size, where), name, tuple(polygons), score)


def _annotation(row: Any, objects: int, labelled: bool, where: str) -> dict[str, Any]:
    annotation: dict[str, Any] = {
        "annot_id": text_entry(row, "annot_id", where),
        "question": _tokens(list_entry(row, "question", where), objects, "question", where),
    }
    for kind in ("answer", "rationale"):
        key = f"{kind}_choices"
        choices = list_entry(row, key, where, CHOICES)
        annotation[key] = [_tokens(choice, objects, key, where) for choice in choices]
        if labelled:
            annotation[f"{kind}_label"] = whole_number(row, f"{kind}_label", where, CHOICES)
    return annotation


def _tokens(tokens: Any, objects: int, what: str, where: str) -> list[str | list[int]]:
    """Checked tokens: words, and lists of numbers of objects.

    Raises:
        DataError: neither, or an object that the image does not have.
    """
    if not isinstance(tokens, list) or not tokens:
        raise DataError(f"{what!r} holds {kind_of(tokens)} where a list of tokens belongs", where=where)
    for token in tokens:
        if isinstance(token, str):
            continue
        if not isinstance(token, list) or not token:
            raise DataError(f"{what!r} holds {kind_of(token)}, neither a word nor a list of objects", where=where)
        for tag in token:
            if isinstance(tag, bool) or not isinstance(tag, int) or not 0 <= tag < objects:
                raise DataError(f"{what!r} names object {tag!r}; there are {objects}", where=where)
    return tokens
