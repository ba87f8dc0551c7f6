"""RefCOCO+: short expressions that each mean one object of a COCO image by its looks, never by its place.

What a record holds: ``mmbert.data.referring``.
"""

from __future__ import annotations

from mmbert.data.corpus import CorpusCard
from mmbert.data.official import RowSource
from mmbert.data.records import BadRecords
from mmbert.data.referring import LICENCE, WHERE, ExpressionRow, ReferringOptions, open_expressions

SPLITS = ("train", "val", "testA", "testB")
CARD = CorpusCard(
    title="RefCOCO+ (Kazemzadeh et al., EMNLP 2014; Yu et al., ECCV 2016), UNC's splits",
    where=WHERE,
    licence=LICENCE,
    size="141,564 expressions for 49,856 objects in 19,992 COCO images; 13 GB of images (train2014)",
    languages=("en",),
    splits=SPLITS,
    counts={
        "train": {"records": 120_191, "images": 16_992},
        "val": {"records": 10_758, "images": 1_500},
        "testA": {"records": 5_726, "images": 750},
        "testB": {"records": 4_889, "images": 750},
    },
    files=("refcoco+/refs(unc).p", "refcoco+/instances.json", "train2014/ (COCO images)"),
)


class Options(ReferringOptions):
    """Options of RefCOCO+; see ``ReferringOptions``."""


def open_source(options: Options, *, report: BadRecords | None = None) -> RowSource[ExpressionRow]:
    """One record for each expression.

    Raises:
        DataError: a file is missing or damaged, or a record cannot be used and is not skipped.
    """
    return open_expressions(
        options, name="refcoco_plus", folder="refcoco+", by="unc", splits=SPLITS, card=CARD, report=report
    )
