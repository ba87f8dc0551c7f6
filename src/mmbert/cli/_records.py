"""Records that commands evaluate on. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.data.records import BadRecords, Record, Source


def read_records(
    source: Source | Sequence[Record],
    models: Sequence[MMBert],
    features: Sequence[str] | None,
    bad: BadRecords,
    *,
    pixels: bool = False,
) -> list[Record]:
    """All records; with ``features``, the models read their images as regions from these stores.

    Args:
        source: the records.
        models: that read them.
        features: region stores.
        bad: decides about records whose image no store has.
        pixels: without stores, see also that every image opens, for evaluations that know of no bad records.

    Raises:
        ConfigError: the regions are none that a model was made for.
        DataError: no store has an image, and ``bad`` does not skip; or no record is left.
    """
    records = [source[i] for i in range(len(source))]
    if not features:
        return usable_records(records, bad) if pixels else records
    from mmbert.data.region_input import RecordsWithRegions, RegionInput

    images = RegionInput(features, classes=False)
    for model in models:
        model.use_regions(images)
    return list(RecordsWithRegions(records, images, bad))


def usable_records(records: Sequence[Record], bad: BadRecords) -> list[Record]:
    """The records without an image or with one that opens, where ``bad`` skips the others; else all of them.

    Raises:
        DataError: no record is left.
    """
    if not bad.skip:
        return list(records)
    from mmbert.api import usable

    kept = [records[number] for number in usable.usable_records(records, bad)]
    if records and not kept:
        raise bad.nothing_left()
    return kept
