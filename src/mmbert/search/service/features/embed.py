"""`/v1/embed`: unit vectors of texts and images."""

from typing import Any

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


def add(app: FastAPI, service: Service) -> None:
    """The route."""

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
            size=service.model.embedding_size,
            texts=[vector.tolist() for vector in texts],
            images=[vector.tolist() for vector in images],
        )
