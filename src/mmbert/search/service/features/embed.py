"""`/v1/embed`: unit vectors of texts and images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from anyio import to_thread
from fastapi import FastAPI

from mmbert.errors import UsageError
from mmbert.search.service.core import Service
from mmbert.search.service.schemas import EmbedAnswer, EmbedRequest
from mmbert.search.service.uploads import decode_image

PATHS = (("POST", "/v1/embed"),)


def missing(model: Any) -> str | None:
    """Needs the projections."""
    return None if model.embedding_size else "this model makes no embeddings (embedding_size is 0)"


def together(encode: Callable[[list[Any]], Any]) -> Callable[[Sequence[list[Any]]], list[Any]]:
    """Encodes what several requests ask for as one, and deals the vectors out again."""

    def run(items: Sequence[list[Any]]) -> list[Any]:
        ends = np.cumsum([len(item) for item in items])
        return np.split(encode([one for item in items for one in item]), ends[:-1])

    return run


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    service.batcher.add("texts", together(model.encode_text))
    service.batcher.add("images", together(model.encode_images))

    @app.post("/v1/embed", tags=["model"])
    async def embed(asked: EmbedRequest) -> EmbedAnswer:
        """Unit vectors: two of them compare by their dot product."""
        if not asked.texts and not asked.images:
            raise UsageError("nothing to embed", hint="give texts, images, or both")
        if not all(text.strip() for text in asked.texts):
            raise UsageError("a text is empty")
        pixels = service.settings.max_pixels
        pictures = [await to_thread.run_sync(decode_image, image, pixels) for image in asked.images]
        texts = await service.compute("texts", asked.texts, len(asked.texts)) if asked.texts else []
        images = await service.compute("images", pictures, len(pictures)) if pictures else []
        return EmbedAnswer(
            size=model.embedding_size,
            texts=[vector.tolist() for vector in texts],
            images=[vector.tolist() for vector in images],
        )
