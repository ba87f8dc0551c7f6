"""What `/v1/caption` and `/v1/translate` share: how a text is asked for, and writing for several requests together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, Field

from mmbert.api.front_door import MMBert
from mmbert.api.writer import BEAM, MOST_PENALTY, Written
from mmbert.compat.writing import cannot_write, writer_of
from mmbert.data.images import OpenedImage
from mmbert.errors import UsageError
from mmbert.search.service.core import Service
from mmbert.search.service.schemas import Request

__all__ = ["OneText", "Writing", "WritingRequest", "cannot_write", "languages"]

WIDEST = 16
"""Hypotheses of a beam."""

Penalty = Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY, allow_inf_nan=False)]


class WritingRequest(Request):
    to: str | None = Field(
        None,
        min_length=1,
        max_length=35,
        description="Language to write, such as de; GET /v1 lists them. Left out where there is one, or none is named.",
    )
    beam: int | None = Field(
        None,
        ge=1,
        le=WIDEST,
        description=f"Hypotheses kept at each step; 1 is greedy. Default: {BEAM}, if it searches.",
    )
    nbest: int = Field(1, ge=1, le=WIDEST, description="Texts that come back, best first; at most `beam`.")
    length_penalty: Penalty = Field(1.0, description="Greater: longer texts; 0: the likeliest.")
    max_tokens: int | None = Field(None, ge=1, description="Word pieces at most. Default: the model's longest text.")


class OneText(BaseModel):
    text: str
    score: float = Field(description="Log probability; of a beam, divided by length ** length_penalty.")


@dataclass(frozen=True)
class _Options:
    to: str | None
    beam: int
    nbest: int
    length_penalty: float
    max_tokens: int | None


@dataclass(frozen=True)
class _Asked:
    texts: list[str]
    image: Image.Image | None
    options: _Options


class Writing:
    """Writes for requests; those that agree in their options go through the model together.

    Args:
        service: whose batches they are.
        kind: of the batches.
        model: that writes.
    """

    def __init__(self, service: Service, kind: str, model: MMBert) -> None:
        self._service, self._kind, self._writer = service, kind, writer_of(model)
        service.batcher.add(kind, self._write)

    def check(self, asked: WritingRequest) -> None:
        """Raises: UsageError: the model cannot be asked so."""
        if asked.to is not None and not self._writer.languages:
            raise UsageError(
                f"this model writes one language that it does not name; whether that is {asked.to!r} nobody knows",
                hint="leave `to` out",
            )
        self._writer.check(asked.to, asked.beam, asked.nbest, asked.max_tokens, asked.length_penalty)

    def beam(self, asked: WritingRequest) -> int:
        """Hypotheses of each text."""
        return asked.beam or self._writer.beam

    async def write(
        self, asked: WritingRequest, texts: list[str], image: Image.Image | None = None
    ) -> list[list[OneText]]:
        """For each text ("" where there is but the image), the best that are written; errors of ``Batcher.submit``."""
        options = _Options(asked.to, self.beam(asked), asked.nbest, asked.length_penalty, asked.max_tokens)
        found = await self._service.compute(
            self._kind,
            _Asked(texts, image, options),
            size=len(texts) * options.beam,
            alike=(options, image is None),
        )
        return [[OneText(text=one.text, score=one.score) for one in best] for best in found]

    def _write(self, items: Sequence[_Asked]) -> list[list[list[Written]]]:
        """The texts of each item, which are alike in their options and in having images."""
        texts = [text for item in items for text in item.texts]
        images = None
        if items[0].image is not None:  # one key for an image: it is looked at once for all its texts
            seen = [OpenedImage(item.image, f"#{n}") for n, item in enumerate(items) if item.image is not None]
            images = [image for image, item in zip(seen, items, strict=True) for _ in item.texts]
        found = iter(self._writer.write(texts, images, **asdict(items[0].options)))
        return [[next(found) for _ in item.texts] for item in items]


def languages(model: MMBert) -> list[str]:
    """That the model writes by their names; none if it writes one that it does not name."""
    return list(writer_of(model).languages)
