"""`/v1/attention`: which regions of an image each word of a text looks at."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from mmbert.search.service.core import Service, asked_image, blind
from mmbert.search.service.schemas import AttentionAnswer, AttentionRequest

PATHS = (("POST", "/v1/attention"),)
NEEDS_NETWORK = True


def missing(model: Any) -> str | None:
    """Needs a network whose layers can be looked into, and one that sees images."""
    if getattr(model, "processor", None) is None:
        return "this model does not show its attention"
    return blind(model)


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    from mmbert.explain.attention import attention_maps

    def run(items: Sequence[tuple[Any, str]]) -> list[Any]:
        return [attention_maps(model, image, text) for image, text in items]

    service.batcher.add("attention", run)

    @app.post("/v1/attention", tags=["model"])
    async def attention(asked: AttentionRequest) -> AttentionAnswer:
        """Attention of every layer and head from words to regions, for one image and text."""
        image = await asked_image(service, asked.image, asked.id)
        maps = await service.compute("attention", (image, asked.text))
        count = len(maps.words)
        return AttentionAnswer(
            words=list(maps.words),
            spans=list(maps.spans),
            boxes=maps.boxes.round(5).tolist(),
            layers=maps.weights.shape[0],
            heads=maps.weights.shape[1],
            weights=maps.weights[:, :, :count, count:].round(5).tolist(),
            match=maps.match,
        )
