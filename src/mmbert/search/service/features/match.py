"""`/v1/match`: probabilities that texts and images belong together."""

from typing import Any

from anyio import to_thread
from fastapi import FastAPI

from mmbert.errors import UsageError
from mmbert.search.service.core import Service, image_bytes
from mmbert.search.service.schemas import MatchAnswer, MatchRequest
from mmbert.search.service.uploads import decode_image, open_image

PATHS = (("POST", "/v1/match"),)
MOST_PAIRS = 512


def missing(model: Any) -> str | None:
    """Needs the match head."""
    config = getattr(model, "config", None)
    return None if config is None or config.match_outputs else "this model has no match head (match_outputs is 0)"


def add(app: FastAPI, service: Service) -> None:
    """The route."""

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
            data = await to_thread.run_sync(image_bytes, service.index, name)
            images.append(await to_thread.run_sync(open_image, data, pixels))
        found = await service.compute("match", (images, asked.texts), pairs)
        return MatchAnswer(probabilities=found.tolist())
