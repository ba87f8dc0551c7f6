"""What a head may read besides the state that it classifies: the sequence's first state, and its region states."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbert.model.packed import PackedBatch, region_places

FIRSTS, REGIONS = "firsts", "regions"
"""What a head's ``reads`` may name."""


@dataclass
class Around:
    """What stands around [M] places of a batch: flat positions, or the states there with a further dimension [H].

    Attributes:
        firsts: [M] the first token of each one's sequence.
        regions: [R] the regions of their sequences, place by place; None where nobody reads them.
        owners: [R] number of the place (0 to M - 1) that each region stands around, ascending.
    """

    firsts: Tensor
    regions: Tensor | None = None
    owners: Tensor | None = None


def surroundings(batch: PackedBatch, places: Tensor, reads: Collection[str]) -> Around | None:
    """The positions around [M] flat ``places``; None if nothing is read there."""
    if not reads:
        return None
    sequences = batch.sequences_at(places)
    around = Around(batch.starts.index_select(0, sequences))
    if REGIONS in reads:
        regions = region_places(batch)
        bounds = torch.searchsorted(regions, batch.cu_seqlens.long())
        begins, counts = (found.index_select(0, sequences) for found in (bounds[:-1], bounds.diff()))
        around.owners = torch.arange(len(places), device=places.device).repeat_interleave(counts)
        within = torch.arange(len(around.owners), device=places.device) - (counts.cumsum(0) - counts)[around.owners]
        around.regions = regions.index_select(0, begins[around.owners] + within)
    return around
