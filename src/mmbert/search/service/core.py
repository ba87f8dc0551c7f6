"""The service without HTTP: what it can be asked, how requests are computed together, what it has been told."""

from __future__ import annotations

import base64
import binascii
import time
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from anyio import to_thread
from PIL import Image

from mmbert.api.processing import BLIND
from mmbert.errors import ImageError, MMBertError, UsageError
from mmbert.search.index import Ask, Hit, SearchIndex
from mmbert.search.service.batching import Batcher
from mmbert.search.service.metrics import Metrics
from mmbert.search.service.offers import Further, offers_of
from mmbert.search.service.uploads import decode_image
from mmbert.vision.images import load_image

LOOK_EVERY = 10.0
"""Seconds between two looks whether the index has been brought up to date."""


@dataclass(frozen=True)
class Settings:
    """Limits of the service.

    Args:
        batch: texts, images or questions that go through the model together; 1 for none.
        queue: requests that may wait; more are answered 429.
        timeout: seconds until a request is given up.
        max_bytes: of a request's body.
        max_pixels: of an image that is sent.
        keys: name -> hash of API keys; empty: none are asked for.
        cors: origins whose pages may use the service; empty: only its own.
        rerank: re-ranking that the page asks for.
    """

    batch: int = 64
    queue: int = 256
    timeout: float = 30.0
    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    keys: dict[str, str] = field(default_factory=dict)
    cors: tuple[str, ...] = ()
    rerank: int = 30


class Service:
    """An index and its model, computing requests in batches.

    Args:
        index: opened with its model.
        settings: limits.
        further: models that answer what the index's cannot, or what they are named for.

    Raises:
        UsageError: a further model adds nothing, or cannot do what it is named for.
    """

    def __init__(self, index: SearchIndex, settings: Settings | None = None, further: Sequence[Further] = ()) -> None:
        self.index, self.settings = index, settings or Settings()
        self.model = index.model
        self.offers = offers_of(self.model, further)
        self.images = index.count()
        self.opened = 0
        self._looked = time.monotonic()
        self.metrics = Metrics()
        self.batcher = Batcher(
            {"search": self._search},
            most=self.settings.batch,
            capacity=self.settings.queue,
            observe=self.metrics.batch,
        )
        self.metrics.gauge("mmbert_queue_jobs", lambda: self.batcher.waiting)
        self.metrics.gauge("mmbert_index_images", lambda: self.images)

    async def compute(self, kind: str, item: Any, size: int = 1, alike: Hashable = None) -> Any:
        """The answer to ``item``, computed together with others like it; arguments and errors of ``Batcher.submit``."""
        return await self.batcher.submit(kind, item, timeout=self.settings.timeout, size=size, alike=alike)

    async def search(self, ask: Ask) -> list[Hit]:
        """What the index finds."""
        found: list[Hit] = await self.compute("search", ask)
        return found

    @cached_property
    def languages(self) -> list[str]:
        """Languages that captions of the first thousand images are in."""
        return self.index.languages()

    def warm_up(self) -> None:
        """Ask once for everything that the first request would wait for (kernels, the table's files)."""
        answer = self.index.search_many([Ask("a", k=1)])[0]
        if isinstance(answer, MMBertError):
            raise answer

    def _search(self, asks: Sequence[Ask]) -> Sequence[Any]:
        self._follow()
        return self.index.search_many(asks)

    def _follow(self) -> None:
        """Open the index again where a build has finished since, looked at now and then."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        if self.index.is_current():
            return
        self.index = SearchIndex.open(self.index.path, self.model)
        self.images, self.opened = self.index.count(), self.opened + 1
        self.__dict__.pop("languages", None)


def name_of(key: str) -> str:
    """An image's path in the index as one piece of a URL."""
    return base64.urlsafe_b64encode(key.encode("utf-8")).decode("ascii").rstrip("=")


def key_of(name: str) -> str:
    """The path that ``name_of`` made ``name`` of.

    Raises:
        UsageError: it made it of none.
    """
    try:
        key = base64.b64decode(name + "=" * (-len(name) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise UsageError("no such image") from error
    return key


def image_bytes(index: SearchIndex, name: str) -> bytes:
    """The file of an image of the index.

    Raises:
        UsageError: the index has no such image.
        ImageError: its file has gone.
    """
    found = index.image_of(key_of(name))
    if found.data is not None:
        return found.data
    try:
        return Path(str(found.path)).read_bytes()
    except OSError as error:
        raise ImageError("the image's file is gone", hint="mmbert index --prune") from error


def indexed_image(index: SearchIndex, name: str) -> Image.Image:
    """An image of the index, of any kind that it takes and as large as it takes them.

    Raises:
        UsageError: the index has no such image.
        ImageError: its file has gone, or is damaged.
    """
    return load_image(image_bytes(index, name), where="the image")


def plain_columns(hit: Hit) -> dict[str, Any]:
    """Columns of a hit as JSON values (numbers that JSON has not become null)."""
    return {
        name: value if not isinstance(value, float) or np.isfinite(value) else None for name, value in hit.extra.items()
    }


def quiet() -> None:
    """Images that have gone since are part of a service's life; their warnings would fill the log."""
    warnings.filterwarnings("ignore", message=".*not re-ranked.*", category=UserWarning)


def blind(model: Any) -> str | None:
    """Why a model cannot read images; None where it can (or prepares them in a way of its own)."""
    processor = getattr(model, "processor", None)
    if processor is None or processor.images is not None:
        return None
    return BLIND


async def asked_image(service: Service, image: str | None, name: str | None) -> Image.Image:
    """The image that a request sends, or names of the index.

    Raises:
        UsageError: it does neither or both, or the index has no such image.
        ImageError: it cannot be opened, or is too large.
    """
    if (image is None) == (name is None):
        raise UsageError("give either an image or the id of one")
    if image is not None:
        return await to_thread.run_sync(decode_image, image, service.settings.max_pixels)
    return await to_thread.run_sync(indexed_image, service.index, str(name))


__all__ = [
    "Service",
    "Settings",
    "asked_image",
    "blind",
    "image_bytes",
    "indexed_image",
    "key_of",
    "name_of",
    "plain_columns",
    "quiet",
]
