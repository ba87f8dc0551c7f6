"""`/v1/answer`: answers to a question about an image."""

from typing import Any

from fastapi import FastAPI

from mmbert.errors import UsageError
from mmbert.search.service.core import Service, asked_image
from mmbert.search.service.schemas import AnswerRequest, Answers, OneAnswer

PATHS = (("POST", "/v1/answer"),)
NEEDS_NETWORK = True


def missing(model: Any) -> str | None:
    """Needs the head that answers, and the words that its outputs stand for."""
    from mmbert.api.answering import cannot_answer

    return cannot_answer(model)


def add(app: FastAPI, service: Service) -> None:
    """The route."""

    @app.post("/v1/answer", tags=["model"])
    async def answer(asked: AnswerRequest) -> Answers:
        """The most probable answers to a question about an image that is sent, or one of the index."""
        image = await asked_image(service, asked.image, asked.id)
        if not asked.question.strip():
            raise UsageError("the question is empty")
        found = await service.compute("answer", (image, asked.question, asked.boxes, asked.k))
        return Answers(answers=[OneAnswer(answer=one.text, probability=one.probability) for one in found])
