"""Extraction: image files in, regions out, in order; images are decoded ahead in threads while the encoder computes.

Memory stays bounded: few images are decoded ahead, and fewer where they are large.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mmbert.errors import DataError
from mmbert.vision.encoders.base import RegionExtractor, VisionEncoder
from mmbert.vision.images import MAX_PIXELS, Reference, load_image, read_header
from mmbert.vision.regions import GivenBoxes, Regions

PIXELS_AHEAD = MAX_PIXELS
"""Pixels that are decoded ahead together (3 bytes each)."""
PIXELS_PER_BATCH = MAX_PIXELS // 2
"""An extractor that sees whole images gets batches of no more (a single larger image stands alone)."""


@dataclass(frozen=True)
class ImageFile:
    """One image to extract.

    Args:
        image: what ``load_image`` opens.
        where: what to call it in an error: its record's file and line, say.
        given: makes the boxes that an encoder with ``takes_boxes`` is to look into.
    """

    image: Reference
    where: str = ""
    given: Callable[[], GivenBoxes] | None = None


@dataclass(frozen=True)
class _Decoded:
    """An image ready for the encoder, its size, how many pixels it takes in memory until it is extracted, its boxes."""

    ready: Any
    size: tuple[int, int]
    pixels: int
    given: GivenBoxes | None = None


class Extraction:
    """Regions of images by an encoder.

    Args:
        encoder: on the device where it shall compute.
        batch_size: images per pass. Part of what decides the last bits of features.
        threads: that decode.
    """

    def __init__(self, encoder: RegionExtractor, *, batch_size: int = 32, threads: int | None = None) -> None:
        self.encoder = encoder.quick()
        self.batch_size = batch_size
        self.threads = threads or min(8, os.cpu_count() or 1)

    def __call__(self, lots: Sequence[Sequence[ImageFile]]) -> Iterator[list[Regions | DataError]]:
        """For each lot of images, the regions (or the error) of each, in order; a batch never spans two lots."""
        with ThreadPoolExecutor(self.threads) as pool, self.encoder.fixed_identity():
            decoded = self._decoded(pool, chain.from_iterable(lots))
            for lot in lots:
                yield self._lot(lot, decoded)

    def _lot(self, lot: Sequence[ImageFile], decoded: Iterator[_Decoded | DataError]) -> list[Regions | DataError]:
        results: list[Regions | DataError] = []
        waiting: list[tuple[int, _Decoded]] = []
        for place in range(len(lot)):
            found = next(decoded)
            if isinstance(found, DataError):
                results.append(found)
                continue
            full = len(waiting) == self.batch_size
            if full or (waiting and sum(d.pixels for _, d in waiting) + found.pixels > PIXELS_PER_BATCH):
                self._extract(waiting, lot, results)
                waiting = []
            results.append(DataError("not extracted"))  # its place, until the batch is full
            waiting.append((place, found))
        if waiting:
            self._extract(waiting, lot, results)
        return results

    def _extract(
        self, batch: list[tuple[int, _Decoded]], lot: Sequence[ImageFile], results: list[Regions | DataError]
    ) -> None:
        try:
            made = self._regions([decoded for _, decoded in batch])
        except DataError as error:
            if len(batch) > 1:  # one of them is at fault
                for single in batch:
                    self._extract([single], lot, results)
                return
            place = batch[0][0]
            results[place] = _at(error, lot[place])
            return
        for (place, _), regions in zip(batch, made, strict=True):
            results[place] = regions

    def _regions(self, batch: list[_Decoded]) -> list[Regions]:
        ready = [decoded.ready for decoded in batch]
        if isinstance(self.encoder, VisionEncoder):
            sizes, given = [decoded.size for decoded in batch], [decoded.given for decoded in batch]
            return self.encoder.extract_prepared(ready, sizes, given)
        return self.encoder.extract(ready)

    def _decoded(self, pool: ThreadPoolExecutor, files: Iterator[ImageFile]) -> Iterator[_Decoded | DataError]:
        """The images in order, decoded in ``pool`` a few ahead."""
        ahead: deque[tuple[Future[_Decoded | DataError], int]] = deque()
        held = 0
        upcoming = next(files, None)
        while upcoming is not None or ahead:
            while upcoming is not None and len(ahead) < 2 * max(self.batch_size, self.threads):
                pixels = _pixels(upcoming.image)
                if ahead and held + pixels > PIXELS_AHEAD:
                    break
                ahead.append((pool.submit(self._load, upcoming), pixels))
                held += pixels
                upcoming = next(files, None)
            done, pixels = ahead.popleft()
            found = done.result()
            held -= pixels
            yield found

    def _load(self, file: ImageFile) -> _Decoded | DataError:
        try:
            image = load_image(file.image, where=file.where or None)
            if isinstance(self.encoder, VisionEncoder):
                boxes = file.given() if file.given is not None and self.encoder.takes_boxes else None
                return _Decoded(self.encoder.prepare(image), image.size, 0, boxes)
            return _Decoded(image, image.size, image.width * image.height)
        except DataError as error:
            return _at(error, file)


def _pixels(image: Reference) -> int:
    """Pixels of an image by its header alone; 0 where it cannot be told (opening it will say why)."""
    try:
        data = image.data
        source = image.path if data is None else io.BytesIO(data)
        with read_header(source) as opened:  # type: ignore[arg-type]
            return min(opened.width * opened.height, PIXELS_AHEAD)
    except Exception:  # damaged headers and archives raise almost anything
        return 0


def _at(error: DataError, file: ImageFile) -> DataError:
    """The error at the image's record; the message then names the image itself."""
    name = (file.image.path or file.image.key).rpartition("/")[2]
    if not file.where:
        return type(error)(error.message, where=error.where or name, hint=error.hint)
    message = error.message if not name or file.where.endswith(name) else f"{name}: {error.message}"
    return type(error)(message, where=file.where, hint=error.hint)
