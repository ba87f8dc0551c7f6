"""`/v1/caption`: an image in words."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from mmbert.search.service.core import Service, asked_image, blind
from mmbert.search.service.features._writing import OneText, Writing, WritingRequest, cannot_write, languages
from mmbert.search.service.schemas import Base64

__all__ = ["PATHS", "add", "languages", "missing"]

PATHS = (("POST", "/v1/caption"),)
NEEDS_NETWORK = True


class CaptionRequest(WritingRequest):
    """An image that is sent, or one of the index (`id`), and the language to describe it in."""

    image: Base64 | None = None
    id: str | None = Field(None, max_length=6000, description="An image of the index instead.")


class Captions(BaseModel):
    captions: list[OneText] = Field(description="The best first.")


def missing(model: Any) -> str | None:
    """Needs a model that writes, and one that sees images."""
    return cannot_write(model) or blind(model)


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    writing = Writing(service, "caption", model)

    @app.post("/v1/caption", tags=["model"])
    async def caption(asked: CaptionRequest) -> Captions:
        """Describe an image that is sent, or one of the index."""
        writing.check(asked)
        image = await asked_image(service, asked.image, asked.id)
        (captions,) = await writing.write(asked, [""], image)
        return Captions(captions=captions)
