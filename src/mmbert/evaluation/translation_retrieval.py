"""Translation retrieval: a model and parallel sentences go in, recall at 1, 5 and 10 in both directions comes out.

Each sentence of one language is a query for the sentences of the other. Sentences of further records may stand among
the candidates (distractors) without being asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert.api.first_states import comparable
from mmbert.api.reranking import rerank_scores
from mmbert.api.text_pairs import encode_sentences, match_sentences
from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError, UsageError
from mmbert.evaluation import ranks
from mmbert.evaluation.gallery import Groups
from mmbert.evaluation.ranks import Array
from mmbert.evaluation.retrieval import Mode, as_mode
from mmbert.evaluation.scorers import PairLogits, best_of, finite, promote
from mmbert.evaluation.tuning import Weights, best_weights

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert


@dataclass(frozen=True)
class Side:
    """The distinct sentences of one language.

    Args:
        language: its code.
        texts: those that are asked, then the distractors.
        images: of each sentence; None where sentences are read alone.
        group: ``[texts]``; sentences of equal number, in either language, say the same.
        asked: how many are queries.
    """

    language: str
    texts: list[str]
    images: list[ImageRef] | None
    group: Array
    asked: int


def build_sides(
    records: Iterable[Record],
    languages: tuple[str, str],
    distractors: Iterable[Record] = (),
    *,
    images: bool = False,
) -> tuple[Side, Side]:
    """Collect the sentences of two languages.

    A sentence that comes twice in one language (with the same image, where images are read) stands there once, and the
    records that it comes from say the same: their translations are all right answers. Group names of distractors are
    their own.

    Raises:
        UsageError: twice the same language, or one that no record has.
        DataError: no record has both; or images are to be read, and a record has none.
    """
    if languages[0] == languages[1]:
        raise UsageError(f"translations from {languages[0]!r} into itself", hint="give two languages")
    groups = Groups()
    sentences: tuple[_Sentences, _Sentences] = ({}, {})
    asked = [0, 0]
    present: set[str] = set()
    for number, (part, prefix) in enumerate(((records, ""), (distractors, "\0"))):
        for record in part:
            present |= set(record.captions) if number == 0 else set()
            for language, found in zip(languages, sentences, strict=True):
                _collect(record, language, prefix + record.group, found, groups, images)
        if number == 0:
            asked = [len(found) for found in sentences]
    for language, count in zip(languages, asked, strict=True):
        if not count:
            raise UsageError(
                f"no sentences in language {language!r}", hint=f"there are: {', '.join(sorted(present)) or 'none'}"
            )
    names = [groups.of(group) for found in sentences for _, group in found.values()]
    numbers, _ = ranks.as_numbers(names)
    first, second = (
        Side(
            language,
            [text for text, _ in found],
            [image for image, _ in found.values() if image is not None] if images else None,
            part,
            count,
        )
        for language, found, part, count in zip(
            languages, sentences, np.split(numbers, [len(sentences[0])]), asked, strict=True
        )
    )
    if not np.isin(first.group[: first.asked], second.group).any():
        raise DataError(f"no record has sentences in both {first.language} and {second.language}: nothing to evaluate")
    return first, second


_Sentences = dict[tuple[str, str], tuple[ImageRef | None, str]]
"""(sentence, key of its image) to the image and the group it was first seen in."""


def _collect(record: Record, language: str, group: str, found: _Sentences, groups: Groups, images: bool) -> None:
    """Add a record's sentences of one language."""
    texts = record.captions.get(language, ())
    if images and texts and record.image is None:
        raise DataError("has no image to read its sentences with", where=record.origin or record.id)
    image = record.image if images else None
    key = "" if image is None else image.key or record.id
    for text in texts:
        groups.join(group, found.setdefault((text, key), (image, group))[1])


class TranslationRetrieval:
    """A model's answers on parallel sentences.

    Args:
        model: with embeddings (``embed``: or at least states, see ``comparable``), and a match head for other modes.
        records: whose sentences are asked.
        source, target: languages. Pairs are read as source, then target, in both directions.
        mode: ``embed`` ranks by cosine, ``match`` by the match logit of every pair, ``rerank`` re-orders each query's
            best ``rerank`` by ``rerank_scores``.
        rerank: how many.
        images: read each sentence with its record's image; pairs with that of the source sentence.
        distractors: records whose sentences stand among the candidates without being asked.
        progress: show bars on stderr.

    Raises:
        UsageError: unknown mode or language, or a model without what the mode needs.
        DataError: no record has both languages; the model gives NaN.
    """

    def __init__(
        self,
        model: MMBert,
        records: Sequence[Record],
        *,
        source: str,
        target: str,
        mode: Mode = "embed",
        rerank: int = 10,
        images: bool = False,
        distractors: Sequence[Record] = (),
        progress: bool = False,
    ) -> None:
        as_mode(mode, rerank)
        self.sides = build_sides(
            (records[i] for i in range(len(records))),
            (source, target),
            (distractors[i] for i in range(len(distractors))),
            images=images,
        )
        self.weights = Weights(model.rerank_weight, model.hub_weight)
        self._scale = model.logit_scale
        self._vectors: list[Array] = []
        self._best: list[Array] = []
        self._logits: PairLogits | None = None
        if mode != "match":
            encoder = comparable(model) if mode == "embed" else model
            self._vectors = [
                finite(encode_sentences(encoder, side.texts, side.images, progress=progress), "text")
                for side in self.sides
            ]
        if mode == "rerank":
            self._hubness = [model.hubness(vectors) for vectors in self._vectors]
            self._best = [
                best_of(partial(self._cosine, way), self.sides[way].asked, len(self.sides[1 - way].texts), rerank)
                for way in (0, 1)
            ]
        if mode != "embed":
            compute = partial(_pair_logits, model, self.sides)
            self._logits = PairLogits([self._pairs(way) for way in (0, 1)], compute, progress=progress)

    def _cosine(self, way: int, start: int, stop: int) -> Array:
        """[stop - start, candidates] cosines of queries; ``way`` 0 asks in the source language, 1 in the target."""
        return self._vectors[way][start:stop] @ self._vectors[1 - way].T

    def _pairs(self, way: int) -> Array:
        return self._keys(way, 0, self.sides[way].asked)

    def _keys(self, way: int, start: int, stop: int) -> Array:
        """[stop - start, k] numbers of the pairs that queries make with those that they are matched with."""
        asking = np.arange(start, stop, dtype=np.int64)[:, None]
        answers = len(self.sides[1 - way].texts)
        answering = self._best[way][start:stop].astype(np.int64) if self._best else np.arange(answers)[None, :]
        first, second = (asking, answering) if way == 0 else (answering, asking)
        return first * len(self.sides[1].texts) + second

    def scores(self, way: int, start: int, stop: int) -> Array:
        """[stop - start, candidates] scores of queries ``start`` to ``stop``; greater is better."""
        if self._logits is None:
            return self._cosine(way, start, stop)
        match = self._logits.of(self._keys(way, start, stop))
        if not self._best:
            return match
        best, cosine = self._best[way][start:stop], self._cosine(way, start, stop)
        found = np.take_along_axis(cosine, best, axis=1).astype(np.float64)
        hubness = self._hubness[1 - way][best]
        joint = rerank_scores(found, match, hubness, self._scale, self.weights.match, self.weights.hub)
        return promote(cosine, best, joint)

    def ranks(self) -> tuple[Array, Array]:
        """[asked] ranks of the best right answers: of source queries among target sentences, and the other way."""
        first, second = (
            ranks.ranks_by_block(partial(self.scores, way), side.group[: side.asked], self.sides[1 - way].group)
            for way, side in enumerate(self.sides)
        )
        return first, second

    @property
    def directions(self) -> tuple[str, str]:
        """Names of both directions."""
        one, other = (side.language for side in self.sides)
        return f"{one}_to_{other}", f"{other}_to_{one}"

    def report(self) -> dict[str, Any]:
        """Recall at 1, 5 and 10, mean reciprocal and median rank of both directions, and their mean.

        A wrong sentence with the same score as the right one ranks before it. Queries without an answer are left out.
        """
        found = {name: _figures(part) for name, part in zip(self.directions, self.ranks(), strict=True)}
        names = next(iter(found.values()))
        return {
            "source": self.sides[0].language,
            "target": self.sides[1].language,
            "queries": [side.asked for side in self.sides],
            "candidates": [len(side.texts) for side in self.sides],
            "mean": {name: float(np.mean([part[name] for part in found.values()])) for name in names},
            **found,
        }


def _figures(found: Array) -> dict[str, float]:
    """Of the ranks of one direction."""
    figures = ranks.figures(found)
    if figures is None:
        raise DataError("no sentence has a translation in the data: nothing to evaluate")
    return figures | {"MRR": float((1 / found[found != ranks.NO_ANSWER]).mean())}


def _pair_logits(model: MMBert, sides: tuple[Side, Side], keys: Array) -> Array:
    """Match logits of pairs, each written ``first * number of second sentences + second``."""
    pairs = np.stack(np.divmod(keys, len(sides[1].texts)), axis=1)
    logits = match_sentences(model, sides[0].texts, sides[1].texts, pairs, sides[0].images)
    return finite(logits, "match")


def best_pair_weights(found: TranslationRetrieval, *, hubs: bool = False) -> tuple[Weights, dict[Weights, float]]:
    """The weights of match logit and hubness with the best mean reciprocal rank over both directions.

    Args:
        found: answers of mode ``rerank`` on validation data; their own weights stay.
        hubs: also try weights of hubness (where the model keeps a bank of queries).

    Returns:
        as :func:`~mmbert.evaluation.tuning.best_weights`.
    """
    before = found.weights

    def reciprocal_rank(weights: Weights) -> float:
        found.weights = weights
        return float(np.mean([_figures(part)["MRR"] for part in found.ranks()]))

    best = best_weights(reciprocal_rank, hubs=hubs)
    found.weights = before
    return best
