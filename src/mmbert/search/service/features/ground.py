"""`/v1/ground`: which part of an image an expression means."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from mmbert.api.grounding import Grounder, Grounding, cannot_ground, chosen_of
from mmbert.errors import MMBertError, UsageError
from mmbert.search.service.core import Service, asked_image
from mmbert.search.service.schemas import Base64, Request, Text

PATHS = (("POST", "/v1/ground"),)
NEEDS_NETWORK = True

Box = Annotated[list[float], Field(min_length=4, max_length=4, description="x1, y1, x2, y2 in pixels of the image.")]


class GroundRequest(Request):
    expression: Text = Field(description='What to find, such as "the man in red".')
    image: Base64 | None = None
    id: str | None = Field(None, max_length=6000, description="An image of the index instead.")
    boxes: list[Box] | None = Field(
        None, min_length=1, max_length=256, description="Candidates; without, the service makes its own."
    )
    k: int = Field(5, ge=1, le=256, description="How many candidates come back, best first.")


class Candidate(BaseModel):
    number: int = Field(description="Among the boxes that were sent, from 0; else among the service's own.")
    box: list[float]
    score: float = Field(description="Probability that it is meant.")


class GroundAnswer(BaseModel):
    width: int
    height: int
    candidates: int
    best: list[Candidate]


def missing(model: Any) -> str | None:
    """Needs the head that grounding trains, and a model that sees images."""
    return cannot_ground(model)


def add(app: FastAPI, service: Service, model: Any) -> None:
    """The route."""
    grounder = Grounder(model)

    def run(items: Sequence[tuple[Any, str]]) -> list[Grounding]:
        return grounder.ground(items)

    service.batcher.add("ground", run)

    @app.post("/v1/ground", tags=["model"])
    async def ground(asked: GroundRequest) -> GroundAnswer:
        """Find the part of an image that an expression means."""
        image = await asked_image(service, asked.image, asked.id)
        if not asked.expression.strip():
            raise UsageError("the expression is empty")
        _check(asked.boxes, image.size)
        seen = grounder.candidates(image, asked.boxes)
        found = chosen_of(await service.compute("ground", (seen, asked.expression)), seen)
        best = [
            Candidate(number=i, box=found.boxes[i].round(2).tolist(), score=round(float(found.scores[i]), 6))
            for i in found.order(asked.k)
        ]
        return GroundAnswer(width=image.width, height=image.height, candidates=len(found.scores), best=best)


def _check(boxes: Sequence[Sequence[float]] | None, size: tuple[int, int]) -> None:
    """Raises UsageError for a box that is none, or that lies outside of the image."""
    from mmbert.data.official import box_within

    for number, (x1, y1, x2, y2) in enumerate(boxes or ()):
        try:
            box_within((x1, y1, x2, y2), size, f"boxes[{number}]")
        except MMBertError as error:
            raise UsageError(f"boxes[{number}]: {error.message}") from error
