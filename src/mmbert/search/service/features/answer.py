"""`/v1/answer`: answers to a question about an image."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI

from mmbert.api.answering import Answer, Answerer, cannot_answer
from mmbert.errors import UsageError
from mmbert.search.service.core import Service, asked_image, blind
from mmbert.search.service.schemas import AnswerRequest, Answers, OneAnswer

PATHS = (("POST", "/v1/answer"),)
NEEDS_NETWORK = True


def missing(model: Any) -> str | None:
    """Needs the head that answers, the words that its outputs stand for, and a model that sees images."""
    return cannot_answer(model) or blind(model)


def answer_all(answerer: Answerer, items: Sequence[tuple[Any, str, list[Any] | None, int]]) -> list[list[Answer]]:
    """Answers to each question about its image (with its boxes), so many as are asked for; all in one batch."""
    seen = [answerer.with_boxes(image, boxes, number=n) for n, (image, _, boxes, _) in enumerate(items)]
    asked = [(image, question) for image, (_, question, _, _) in zip(seen, items, strict=True)]
    found = answerer.answer(asked, top=max(most for *_, most in items))
    return [best[:most] for best, (*_, most) in zip(found, items, strict=True)]


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    service.batcher.add("answer", partial(answer_all, Answerer(model)))

    @app.post("/v1/answer", tags=["model"])
    async def answer(asked: AnswerRequest) -> Answers:
        """The most probable answers to a question about an image that is sent, or one of the index."""
        image = await asked_image(service, asked.image, asked.id)
        if not asked.question.strip():
            raise UsageError("the question is empty")
        found = await service.compute("answer", (image, asked.question, asked.boxes, asked.k))
        return Answers(answers=[OneAnswer(answer=one.text, probability=one.probability) for one in found])
