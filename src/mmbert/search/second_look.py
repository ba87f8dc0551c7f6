"""What re-ranking needs to know of an image, computed once and kept: its embedded regions, and a more exact vector.

In: hits of a search. Out: regions that are matched with any text, and vectors over several views, so that the images of
an index are opened and go through the vision encoder when they are first re-ranked, not with each query.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmbert.api.reranking import encode_carefully
from mmbert.api.usable import usable_images
from mmbert.data.records import BadRecords
from mmbert.errors import ImageError

if TYPE_CHECKING:
    from mmbert.api.front_door import KeptRegions, MMBert
    from mmbert.search.index import Hit
    from mmbert.vision.images import ImageSource

MOST_BYTES = 128 << 20
"""Of looks that are kept: some thousand images of the starter; the least recently wanted go first."""


@dataclass(frozen=True)
class Look:
    """An image as re-ranking sees it.

    Attributes:
        regions: stand for it in ``match_pairs``.
        vector: [D], the mean over ``model.rerank_views`` views.
    """

    regions: KeptRegions
    vector: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size."""
        return int(self.regions.vectors.nbytes + self.vector.nbytes)


class SecondLooks:
    """Looks at the images of one index by one model. May be used by several threads.

    Args:
        most_bytes: that are kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.held = most_bytes, 0
        self._kept: OrderedDict[Hashable, Look] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, model: MMBert, hits: Iterable[Hit]) -> dict[str, Look]:
        """Looks by ``Hit.path``. An image that cannot be opened has none, with a warning."""
        wanted = {hit.path: hit for hit in hits}
        found: dict[str, Look] = {}
        fresh: list[tuple[Hashable, Hit]] = []
        for path, hit in wanted.items():
            if hit.regions is not None:
                found[path] = _of_the_index(hit)
                continue
            name = _name(hit)
            kept = self._take(name)
            if kept is None:
                fresh.append((name, hit))
            else:
                found[path] = kept
        looks = _look(model, [hit for _, hit in fresh])
        for (name, hit), look in zip(fresh, looks, strict=True):
            if look is not None:
                found[hit.path] = look
                self._keep(name, look)
        return found

    def _take(self, name: Hashable) -> Look | None:
        with self._lock:
            look = self._kept.get(name)
            if look is not None:
                self._kept.move_to_end(name)
            return look

    def _keep(self, name: Hashable, look: Look) -> None:
        with self._lock:
            if name in self._kept:
                return
            self._kept[name] = look
            self.held += look.nbytes
            while self.held > self.most_bytes:
                self.held -= self._kept.popitem(last=False)[1].nbytes


def _name(hit: Hit) -> Hashable:
    """What tells an image from others, and from what its file was before or after; a file that has gone has another."""
    if hit.image is not None and hit.image.data is not None:
        return hit.path
    try:
        file = Path(hit.path).stat()
    except OSError:
        return hit.path, None
    return hit.path, file.st_mtime_ns, file.st_size


def _of_the_index(hit: Hit) -> Look:
    """The regions that the index keeps, with the vector it has."""
    from mmbert.api.front_door import KeptRegions

    assert hit.regions is not None
    regions = np.frombuffer(hit.regions, dtype=np.float16).reshape(hit.region_count, -1)
    return Look(KeptRegions(regions), np.asarray(hit.vector))


def _look(model: MMBert, hits: Sequence[Hit]) -> list[Look | None]:
    """A look at each image, None where it cannot be opened."""
    if not hits:
        return []
    try:
        return list(_all(model, hits))
    except ImageError:
        bad = BadRecords(skip=True)
        opened = usable_images([_source(hit) for hit in hits], [hit.path for hit in hits], bad)
        if len(opened) == len(hits):  # they all open, and yet the model refused one: not ours to skip
            raise
    for where, what in bad:
        warnings.warn(f"{where}: {what}; not re-ranked (mmbert index --prune tidies up)", stacklevel=6)
    looks: list[Look | None] = [None] * len(hits)
    kept = [hits[i] for i in opened]
    for i, look in zip(opened, _all(model, kept) if kept else (), strict=True):
        looks[i] = look
    return looks


def _all(model: MMBert, hits: Sequence[Hit]) -> list[Look]:
    images = [_source(hit) for hit in hits]
    regions = model.region_vectors(images, exact=True)
    vectors = encode_carefully(model, images, np.stack([hit.vector for hit in hits]))
    return [Look(kept, np.array(vector)) for kept, vector in zip(regions, vectors, strict=True)]


def _source(hit: Hit) -> ImageSource:
    return hit.image or hit.path
