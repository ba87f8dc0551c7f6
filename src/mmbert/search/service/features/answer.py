"""`/v1/answer`: answers to a question about an image."""

from typing import Any

from anyio import to_thread
from fastapi import FastAPI

from mmbert.errors import UsageError
from mmbert.search.service.core import Service, image_bytes
from mmbert.search.service.schemas import AnswerRequest, Answers, OneAnswer
from mmbert.search.service.uploads import decode_image, open_image

PATHS = (("POST", "/v1/answer"),)


def missing(model: Any) -> str | None:
    """Needs the head that answers, and the words that its outputs stand for."""
    from mmbert.api.answering import cannot_answer

    return cannot_answer(model)


def add(app: FastAPI, service: Service) -> None:
    """The route."""

    @app.post("/v1/answer", tags=["model"])
    async def answer(asked: AnswerRequest) -> Answers:
        """The most probable answers to a question about an image that is sent, or one of the index."""
        if (asked.image is None) == (asked.id is None):
            raise UsageError("give either an image or the id of one")
        if not asked.question.strip():
            raise UsageError("the question is empty")
        pixels = service.settings.max_pixels
        if asked.image is not None:
            image = await to_thread.run_sync(decode_image, asked.image, pixels)
        else:
            data = await to_thread.run_sync(image_bytes, service.index, str(asked.id))
            image = await to_thread.run_sync(open_image, data, pixels)
        found = await service.compute("answer", (image, asked.question, asked.boxes, asked.k))
        return Answers(answers=[OneAnswer(answer=one.text, probability=one.probability) for one in found])
