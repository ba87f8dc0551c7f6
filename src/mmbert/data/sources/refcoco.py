"""RefCOCO: short expressions that each mean one object of a COCO image; where things are may be said.

What a record holds: ``mmbert.data.referring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mmbert.data.corpus import CorpusCard
from mmbert.data.official import RowSource
from mmbert.data.records import BadRecords
from mmbert.data.referring import LICENCE, WHERE, ExpressionRow, ReferringOptions, open_expressions

SPLITS = ("train", "val", "testA", "testB")
CARD = CorpusCard(
    title="RefCOCO (Kazemzadeh et al., EMNLP 2014; Yu et al., ECCV 2016), UNC's splits",
    where=WHERE,
    licence=LICENCE,
    size="142,209 expressions for 50,000 objects in 19,994 COCO images; 13 GB of images (train2014)",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 120_624, "images": 16_994},
        "val": {"records": 10_834, "images": 1_500},
        "testA": {"records": 5_657, "images": 750},
        "testB": {"records": 5_095, "images": 750},
    },
    files=("refcoco/refs(unc).p", "refcoco/instances.json", "train2014/ (COCO images)"),
)


class Options(ReferringOptions):
    """Options of RefCOCO; see ``ReferringOptions``. ``split_by: google`` takes Google's splits: train, val, test."""

    split_by: Literal["unc", "google"] = "unc"


def published(options: Options) -> Mapping[str, int]:
    """Counts of the chosen split; of Google's splits only those of images are known."""
    if options.split_by == "unc":
        return CARD.counts.get(options.split, {})
    of_google = {"train": {"images": 19_213}, "val": {"images": 4_559}, "test": {"images": 4_527}}
    return of_google.get(options.split, {})


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[ExpressionRow]:
    """One record for each expression.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    splits = SPLITS if options.split_by == "unc" else ("train", "val", "test")
    return open_expressions(
        options, name="refcoco", folder="refcoco", by=options.split_by, splits=splits, card=CARD, report=report
    )
