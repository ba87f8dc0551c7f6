"""`/v1/translate`: texts in another language, each by itself or with an image at hand."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from mmbert.errors import UsageError
from mmbert.search.service.core import Service, asked_image, blind
from mmbert.search.service.features._writing import OneText, Writing, WritingRequest, cannot_write, languages
from mmbert.search.service.schemas import Base64, Text

__all__ = ["PATHS", "add", "languages", "missing"]

PATHS = (("POST", "/v1/translate"),)
NEEDS_NETWORK = True
MOST_HYPOTHESES = 256


class TranslateRequest(WritingRequest):
    """Texts in any language that the model reads; it need not be said which."""

    texts: list[Text] = Field(min_length=1, max_length=64)
    image: Base64 | None = Field(None, description="What all the texts are about, in base64.")
    id: str | None = Field(None, max_length=6000, description="An image of the index that they are about instead.")


class Translations(BaseModel):
    translations: list[list[OneText]] = Field(description="For each text, the best first.")


def missing(model: Any) -> str | None:
    """Needs a model that writes."""
    return cannot_write(model)


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    writing = Writing(service, "translate", model)

    @app.post("/v1/translate", tags=["model"])
    async def translate(asked: TranslateRequest) -> Translations:
        """Write texts in another language, with an image of what they are about if there is one."""
        writing.check(asked)
        if not all(text.strip() for text in asked.texts):
            raise UsageError("a text is empty")
        beam = writing.beam(asked)
        if (hypotheses := len(asked.texts) * beam) > MOST_HYPOTHESES:
            raise UsageError(
                f"{len(asked.texts)} texts with a beam of {beam} are too many",
                hint=f"{hypotheses} hypotheses; at most {MOST_HYPOTHESES} in a request",
            )
        image = None
        if asked.image is not None or asked.id is not None:
            if (reason := blind(model)) is not None:
                raise UsageError(reason, hint="leave the image out")
            image = await asked_image(service, asked.image, asked.id)
        return Translations(translations=await writing.write(asked, asked.texts, image))
