"""`/v1/match`: probabilities that texts and images belong together."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from anyio import to_thread
from fastapi import FastAPI

from mmbert.errors import UsageError
from mmbert.search.service.core import Service, blind, indexed_image
from mmbert.search.service.schemas import MatchAnswer, MatchRequest
from mmbert.search.service.uploads import decode_image

PATHS = (("POST", "/v1/match"),)
MOST_PAIRS = 512


def missing(model: Any) -> str | None:
    """Needs the match head, and a model that sees images."""
    config = getattr(model, "config", None)
    if config is not None and not config.match_outputs:
        return "this model has no match head (match_outputs is 0)"
    return blind(model)


def match_all(model: Any, items: Sequence[tuple[list[Any], list[str]]]) -> list[Any]:
    """[images, texts] probabilities for each item; the pairs of all of them are one packed batch."""
    images: list[Any] = []
    texts: list[str] = []
    pairs: list[list[tuple[int, int]]] = []
    for shown, said in items:
        pairs.append([(len(images) + i, len(texts) + t) for i in range(len(shown)) for t in range(len(said))])
        images += shown
        texts += said
    logits = model.match_pairs(images, texts, np.array([pair for part in pairs for pair in part]))
    found = np.split(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))), np.cumsum([len(p) for p in pairs])[:-1])
    return [part.reshape(len(shown), len(said)) for part, (shown, said) in zip(found, items, strict=True)]


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    service.batcher.add("match", partial(match_all, model))

    @app.post("/v1/match", tags=["model"])
    async def match(asked: MatchRequest) -> MatchAnswer:
        """Read every image together with every text."""
        if not asked.images and not asked.ids:
            raise UsageError("no images", hint="send images, or ids of images of the index")
        if not all(text.strip() for text in asked.texts):
            raise UsageError("a text is empty")
        pairs = (len(asked.images) + len(asked.ids)) * len(asked.texts)
        if pairs > MOST_PAIRS:
            raise UsageError(f"{pairs} pairs are too many", hint=f"at most {MOST_PAIRS} in a request")
        pixels = service.settings.max_pixels
        images = [await to_thread.run_sync(decode_image, image, pixels) for image in asked.images]
        for name in asked.ids:
            images.append(await to_thread.run_sync(indexed_image, service.index, name))
        found = await service.compute("match", (images, asked.texts), pairs)
        return MatchAnswer(probabilities=found.tolist())
