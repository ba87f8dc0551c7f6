"""RefCOCOg: whole sentences that each mean one object of a COCO image.

What a record holds: ``mmbert.data.referring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mmbert.data.corpus import CorpusCard
from mmbert.data.official import RowSource
from mmbert.data.records import BadRecords
from mmbert.data.referring import LICENCE, WHERE, ExpressionRow, ReferringOptions, open_expressions

SPLITS = ("train", "val", "test")
CARD = CorpusCard(
    title="RefCOCOg (Mao et al., CVPR 2016), UMD's splits (Nagaraja et al., ECCV 2016)",
    where=WHERE,
    licence=LICENCE,
    size="95,010 expressions for 49,822 objects in 25,799 COCO images; 13 GB of images (train2014)",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 80_512, "images": 21_899},
        "val": {"records": 4_896, "images": 1_300},
        "test": {"records": 9_602, "images": 2_600},
    },
    files=("refcocog/refs(umd).p", "refcocog/instances.json", "train2014/ (COCO images)"),
)


class Options(ReferringOptions):
    """Options of RefCOCOg; see ``ReferringOptions``.

    ``split_by: google`` takes Google's splits, train and val, which share images.
    """

    split_by: Literal["umd", "google"] = "umd"


def published(options: Options) -> Mapping[str, int]:
    """Published counts of the chosen split, by its maker (umd or google)."""
    if options.split_by == "umd":
        return CARD.counts.get(options.split, {})
    of_google = {"train": {"records": 85_474, "images": 24_698}, "val": {"records": 9_536, "images": 4_650}}
    return of_google.get(options.split, {})


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[ExpressionRow]:
    """One record for each expression.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    splits = SPLITS if options.split_by == "umd" else ("train", "val")
    return open_expressions(
        options, name="refcocog", folder="refcocog", by=options.split_by, splits=splits, card=CARD, report=report
    )
