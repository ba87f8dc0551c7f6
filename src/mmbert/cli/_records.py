"""Records that commands evaluate on. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.data.records import BadRecords, Record, Source


def read_records(source: Source, model: MMBert, features: Sequence[str] | None, bad: BadRecords) -> list[Record]:
    """All records; with ``features``, the model reads their images as regions from these stores.

    Raises:
        ConfigError: the regions are none that the model was made for.
        DataError: no store has an image, and ``bad`` does not skip.
    """
    records = [source[i] for i in range(len(source))]
    if not features:
        return records
    from mmbert.data.region_input import RecordsWithRegions, RegionInput

    images = RegionInput(features, classes=False)
    model.use_regions(images)
    return list(RecordsWithRegions(records, images, bad))
