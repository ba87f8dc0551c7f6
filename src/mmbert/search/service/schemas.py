"""What goes over the wire: typed requests and answers, from which the OpenAPI description is made."""

# No `from __future__ import annotations` here: FastAPI reads the annotations themselves.

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=2000)]
Base64 = Annotated[str, Field(min_length=1, description="An image file (JPEG, PNG, WebP, GIF, BMP, AVIF) in base64.")]

Coordinate = Annotated[float, Field(allow_inf_nan=False)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SearchRequest(Request):
    """A text, an image, both, or an image of the index (`like`)."""

    text: Text | None = Field(None, description="What to look for, in any language.")
    image: Base64 | None = None
    like: str | None = Field(None, max_length=6000, description="Id of an image of the index: find others like it.")
    image_weight: float = Field(0.5, ge=0, le=1, description="Weight of the image beside a text.")
    k: int = Field(10, ge=1, le=200)
    offset: int = Field(0, ge=0, le=9000, description="Leave out the first so many.")
    rerank: int = Field(0, ge=0, le=200, description="Read so many of the nearest together with the text.")
    where: str | None = Field(None, min_length=1, max_length=1000, description="Condition on columns, in SQL.")


class Found(BaseModel):
    id: str = Field(description="For /v1/images/{id} and `like`.")
    name: str = Field(description="Path of the image in the index.")
    rank: int
    score: float = Field(description="Cosine of query and image.")
    probability: float | None = Field(description="That the image is right, from the score; null if not calibrated.")
    match: float | None = Field(description="Probability that text and image belong together; null if not re-ranked.")
    captions: dict[str, list[str]]
    columns: dict[str, Any]


class SearchAnswer(BaseModel):
    hits: list[Found]
    images: int = Field(description="Images in the index.")


class EmbedRequest(Request):
    texts: list[Text] = Field(default_factory=list, max_length=64)
    images: list[Base64] = Field(default_factory=list, max_length=16)


class EmbedAnswer(BaseModel):
    size: int
    texts: list[list[float]]
    images: list[list[float]]


class MatchRequest(Request):
    images: list[Base64] = Field(default_factory=list, max_length=16)
    ids: list[Annotated[str, Field(max_length=6000)]] = Field(
        default_factory=list, max_length=64, description="Images of the index, after those sent along."
    )
    texts: list[Text] = Field(min_length=1, max_length=64)


class MatchAnswer(BaseModel):
    probabilities: list[list[float]] = Field(description="A row for each image, a column for each text.")


class AttentionRequest(Request):
    text: Text
    image: Base64 | None = None
    id: str | None = Field(None, max_length=6000, description="An image of the index instead.")


class AttentionAnswer(BaseModel):
    words: list[str]
    spans: list[tuple[int, int]] = Field(description="Where each word stands in the text (characters).")
    boxes: list[tuple[float, float, float, float]] = Field(description="Fractions of width and height.")
    layers: int
    heads: int
    weights: list[list[list[list[float]]]] = Field(description="[layer][head][word][region]")
    match: float | None


class AnswerRequest(Request):
    """A question about an image that is sent, or about one of the index (`id`)."""

    question: Text
    image: Base64 | None = None
    id: str | None = Field(None, max_length=6000, description="An image of the index instead.")
    k: int = Field(5, ge=1, le=100)
    boxes: list[Annotated[list[Coordinate], Field(min_length=4, max_length=4)]] | None = Field(
        None, max_length=100, description="Objects x1, y1, x2, y2 in pixels, for models that look into given boxes."
    )


class OneAnswer(BaseModel):
    answer: str
    probability: float


class Answers(BaseModel):
    answers: list[OneAnswer] = Field(description="The most probable first.")


class Capability(BaseModel):
    name: str
    available: bool
    reason: str | None = Field(description="Why it is not there.")
    model: str | None = Field(description="Who answers.")
    languages: list[str] = Field(description="That it writes, where it writes.")


class About(BaseModel):
    model: str | None
    images: int
    languages: list[str]
    columns: dict[str, str]
    calibrated: bool
    rerank: int = Field(description="What the page asks for.")
    capabilities: list[Capability]


class Problem(BaseModel):
    message: str
    hint: str | None = None


class Failure(BaseModel):
    error: Problem
