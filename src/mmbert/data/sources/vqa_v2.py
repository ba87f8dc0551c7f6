"""VQA v2: questions about COCO images, each with ten people's answers; Visual Genome's questions and boxes on request.

``annotation``: ``question``, ``question_id``, ``image_id``; with answers: ``answers`` (the ten, as given), ``answer``
(the most frequent), ``answer_type`` and ``question_type``. Questions of Visual Genome have one answer and
``"corpus": "visual_genome"``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator

from mmbert.data.corpus import CorpusCard, need, need_all
from mmbert.data.json_items import item_at, json_items, list_entry, not_twice, text_entry, whole_number
from mmbert.data.official import (
    COCO_FOLDERS,
    ImageOptions,
    Images,
    RowSource,
    chosen_splits,
    coco_name,
    some,
)
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.data.referring import Objects
from mmbert.errors import DataError

YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
SPLITS = tuple(YEARS)
ANSWERED = ("train", "val")
CARD = CorpusCard(
    title="VQA v2.0 (Goyal et al., CVPR 2017)",
    where="https://visualqa.org/download.html",
    licence="annotations CC BY 4.0; the photographs (COCO) belong to their Flickr authors",
    size="1.1 million questions about 204,721 COCO images; 25 GB of images, 120 MB of zipped JSON",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 443_757, "answers": 4_437_570},
        "val": {"records": 214_354, "answers": 2_143_540},
        "test": {"records": 447_793},
        "test-dev": {"records": 107_394},
    },
    files=(
        "v2_OpenEnded_mscoco_train2014_questions.json …",
        "v2_mscoco_train2014_annotations.json …",
        "train2014/ val2014/ test2015/ (COCO images)",
    ),
)


class Options(ImageOptions):
    """Options of VQA v2; see ``ImageOptions``. ``train+val`` is what test results are reported with.

    ``visual_genome``: folder with Visual Genome's ``question_answers.json`` and ``image_data.json``; its questions
    about the COCO images of the chosen splits are added. ``boxes``: COCO's ``instances_train2014.json`` … in a folder
    (there are none of test images), or one such file; records then have the boxes of the objects, which some vision
    encoders look into.
    """

    split: str = "train"
    visual_genome: Path | None = None
    boxes: Path | None = None

    @field_validator("visual_genome", "boxes")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()


class _Answers(NamedTuple):
    image_id: int
    answers: tuple[str, ...]
    answer: str
    answer_type: str
    question_type: str


class QuestionRow(NamedTuple):
    """One question; ``answered`` is None where the answers are kept back."""

    question: str
    question_id: int
    image: ImageRef
    image_id: int
    split: str
    answered: _Answers | None
    origin: str
    corpus: str = ""

    def record(self, boxes: Sequence[RegionBox] = (), size: tuple[int, int] | None = None) -> Record:
        """The record of the question; ``boxes`` and ``size`` are those of its image, where they are known."""
        annotation: dict[str, Any] = {
            "question": self.question,
            "question_id": self.question_id,
            "image_id": self.image_id,
        }
        if self.answered is not None:
            annotation |= {
                "answers": list(self.answered.answers),
                "answer": self.answered.answer,
                "answer_type": self.answered.answer_type,
                "question_type": self.answered.question_type,
            }
        if self.corpus:
            annotation["corpus"] = self.corpus
        return Record(
            id=f"{self.corpus}:{self.question_id}" if self.corpus else str(self.question_id),
            image=self.image,
            split=self.split,
            group=self.image.key,
            origin=self.origin,
            annotation=annotation,
            boxes=tuple(boxes),
            size=size,
        )


def count(record: Record) -> dict[str, int]:
    """Further counts of a record, to be held against the card."""
    return {"answers": len(record.annotation.get("answers", ()))}


def published(options: Options) -> Mapping[str, int]:
    """Counts of the chosen split; with Visual Genome's questions there are more, and none were published."""
    return CARD.counts.get(options.split, {}) if options.visual_genome is None else {}


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[QuestionRow]:
    """One record for each question.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    report = report or BadRecords(skip=options.skip_bad)
    splits = chosen_splits(options.split, SPLITS, "vqa_v2")
    images = Images(options, CARD, COCO_FOLDERS)
    rows: list[QuestionRow] = []
    for split in splits:
        rows += _questions(options.root, split, images, report)
    if options.visual_genome is not None:
        if not set(splits) <= set(ANSWERED):
            raise DataError(
                "Visual Genome's questions go with train and val only", hint="leave visual_genome out of a test"
            )
        of_coco = {row.image_id: row for row in rows}
        rows += _visual_genome(options.visual_genome, of_coco, report)
    make: Callable[[QuestionRow], Record]
    make = QuestionRow.record if options.boxes is None else _with_boxes(options.boxes, splits, report)
    return RowSource(f"vqa_v2:{options.split}", (), some(rows, report, str(options.root)), make, options.regions_by)


def _with_boxes(place: Path, splits: Sequence[str], report: BadRecords) -> Callable[[QuestionRow], Record]:
    """Makes records with the boxes of their images."""
    paths = [place]
    if place.is_dir():
        names = dict.fromkeys(f"instances_{YEARS[split]}.json" for split in splits if split in ANSWERED)
        card = CorpusCard("COCO's objects", "https://cocodataset.org/#download", "CC BY 4.0", "", files=tuple(names))
        paths = [need(place, card, name, f"annotations/{name}") for name in names]
    objects = [Objects(path, report) for path in paths]

    def record(row: QuestionRow) -> Record:
        for found in objects:
            if row.image_id in found.images:
                return row.record(found.boxes.get(row.image_id, ()), found.images[row.image_id].size)
        return row.record()

    return record


def _questions(root: Path, split: str, images: Images, report: BadRecords) -> Iterator[QuestionRow]:
    year = YEARS[split]
    names = f"v2_OpenEnded_mscoco_{year}_questions.json", f"v2_mscoco_{year}_annotations.json"
    wanted = names if split in ANSWERED else names[:1]
    questions, *answered_in = need_all(root, CARD, [(name, f"vqa/{name}") for name in wanted])
    answers = _answers(answered_in[0], report) if answered_in else {}
    seen: set[int] = set()
    for key, number, item in json_items(questions):
        if key != "questions" or not number:
            continue
        where = f"{questions.name}:{item_at(key, number)}"
        try:
            question_id = whole_number(item, "question_id", where)
            not_twice("question", question_id, seen, where)
            seen.add(question_id)
            image_id = whole_number(item, "image_id", where)
            question = text_entry(item, "question", where)
            answered = answers.pop(question_id, None)
            if split in ANSWERED and answered is None:
                raise DataError(f"question {question_id} has no usable answers", where=where)
            if answered is not None and answered.image_id != image_id:
                raise DataError(f"image {image_id}, but its answers are about {answered.image_id}", where=where)
            image = images.ref(coco_name("test2015" if split == "test-dev" else year, image_id), where)
        except DataError as error:
            report.add(error)
        else:
            yield QuestionRow(question, question_id, image, image_id, split, answered, where)
    for question_id in answers.keys() - seen:
        report.add(DataError(f"answers to question {question_id}, which is not listed", where=names[1]))


def _answers(path: Path, report: BadRecords) -> dict[int, _Answers]:
    found: dict[int, _Answers] = {}
    for key, number, item in json_items(path):
        if key != "annotations" or not number:
            continue
        where = f"{path.name}:{item_at(key, number)}"
        try:
            given = tuple(sys.intern(text_entry(a, "answer", where)) for a in list_entry(item, "answers", where, 10))
            question_id = whole_number(item, "question_id", where)
            not_twice("the entry for question", question_id, found, where)
            found[question_id] = _Answers(
                whole_number(item, "image_id", where),
                given,
                sys.intern(text_entry(item, "multiple_choice_answer", where)),
                sys.intern(text_entry(item, "answer_type", where)),
                sys.intern(text_entry(item, "question_type", where)),
            )
        except DataError as error:
            report.add(error)
    return found


def _visual_genome(folder: Path, of_coco: dict[int, QuestionRow], report: BadRecords) -> Iterator[QuestionRow]:
    """Visual Genome's questions about the images that ``of_coco`` has questions about."""
    card = CorpusCard("Visual Genome", "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html", "CC BY 4.0", "")
    data = need(folder, card, "image_data.json")
    coco_id: dict[int, int] = {}
    for key, number, item in json_items(data):
        where = f"{data.name}:{item_at(key, number)}"
        if isinstance(item, dict) and item.get("coco_id") in of_coco:
            coco_id[whole_number(item, "image_id", where)] = item["coco_id"]
    path = need(folder, card, "question_answers.json")
    for key, number, item in json_items(path):
        where = f"{path.name}:{item_at(key, number)}"
        try:
            for asked in list_entry(item, "qas", where):
                beside = of_coco.get(coco_id.get(whole_number(asked, "image_id", where), -1))
                if beside is not None:
                    yield _asked(asked, beside, where)
        except DataError as error:
            report.add(error)


def _asked(item: Any, beside: QuestionRow, where: str) -> QuestionRow:
    """A question of Visual Genome about the image of ``beside``."""
    answer = text_entry(item, "answer", where)
    return QuestionRow(
        text_entry(item, "question", where),
        whole_number(item, "qa_id", where),
        beside.image,
        beside.image_id,
        beside.split,
        _Answers(beside.image_id, (answer,), answer, "", ""),
        where,
        "visual_genome",
    )
