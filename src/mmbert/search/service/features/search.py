"""`/v1/search`: images by a text, an image, both, or an image of the index."""

from typing import Any

from anyio import to_thread
from fastapi import FastAPI

from mmbert.search.index import Ask, Hit
from mmbert.search.service.core import Service, key_of, name_of, plain_columns
from mmbert.search.service.schemas import Found, SearchAnswer, SearchRequest
from mmbert.search.service.uploads import decode_image

PATHS = (("POST", "/v1/search"),)
OF_THE_INDEX = True


def missing(model: Any) -> str | None:
    """Searching needs vectors."""
    return None if model.embedding_size else "this model makes no embeddings (embedding_size is 0)"


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""

    @app.post("/v1/search", tags=["search"])
    async def search(asked: SearchRequest) -> SearchAnswer:
        """Find images."""
        image = None
        if asked.image is not None:
            image = await to_thread.run_sync(decode_image, asked.image, service.settings.max_pixels)
        like = None if asked.like is None else key_of(asked.like)
        ask = Ask(asked.text, image, like, asked.image_weight, asked.k, asked.offset, asked.rerank, asked.where)
        ask.check()
        hits = await service.search(ask)
        return SearchAnswer(hits=[_found(hit) for hit in hits], images=service.images)


def _found(hit: Hit) -> Found:
    key = hit.image.key if hit.image else hit.path
    return Found(
        id=name_of(key),
        name=key,
        rank=hit.rank,
        score=round(hit.score, 6),
        probability=None if hit.probability is None else round(hit.probability, 6),
        match=None if hit.match is None else round(hit.match, 6),
        captions={language: list(said) for language, said in hit.captions.items()},
        columns=plain_columns(hit),
    )
