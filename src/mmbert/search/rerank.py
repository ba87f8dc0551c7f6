"""Re-ranking: the first hits of a search are read together with the query and put in a better order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mmbert.api.reranking import rerank_scores
from mmbert.search.second_look import Look, SecondLooks

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.search.index import Hit


@dataclass(frozen=True)
class Found:
    """A query's hits, to be put in a better order.

    Attributes:
        text: what was asked for.
        vector: [D] that was searched with: the text's, or what it and an image make.
        text_weight: the text's share of it, 0 to 1; that of an image is the rest.
        hits: best first.
        first: how many of them are re-ranked.
    """

    text: str
    vector: np.ndarray
    text_weight: float
    hits: Sequence[Hit]
    first: int


def rerank_many(model: MMBert, asked: Sequence[Found], looks: SecondLooks | None = None) -> list[list[Hit]]:
    """Put the first hits of each query in the order of ``rerank_scores``: cosine, match and hubness.

    Match and hubness are the text's, and count as much as the text does in the vector that was searched with.

    The others stay behind them in their order. A hit whose image cannot be opened any more keeps no match and comes
    right after the re-ranked ones, with a warning. The images of all queries, and then the pairs, go through the model
    together.

    Args:
        asked: the queries.
        looks: keeps what it takes to know of the images.

    Returns:
        The same hits with ``match`` (probability) and ``rank`` set.
    """
    heads = [list(one.hits[: one.first]) for one in asked]
    if not heads:
        return []
    seen = (looks or SecondLooks()).at(model, [hit for head in heads for hit in head])
    logits = _logits(model, [one.text for one in asked], heads, seen)
    return [_ordered(model, one, found, seen) for one, found in zip(asked, logits, strict=True)]


def _ordered(model: MMBert, asked: Found, logits: np.ndarray, seen: Mapping[str, Look]) -> list[Hit]:
    """One query's hits in their new order; ``logits`` is of those that were seen."""
    head, rest = asked.hits[: asked.first], asked.hits[asked.first :]
    read = [hit for hit in head if hit.path in seen]
    order = np.empty(0, dtype=np.int64)
    if read:
        vectors = np.stack([seen[hit.path].vector for hit in read])
        cosine, hubness = vectors.astype(np.float64) @ asked.vector, model.hubness(vectors)
        weights = asked.text_weight * model.rerank_weight, asked.text_weight * model.hub_weight
        factors = model.logit_scale, *weights
        order = np.argsort(-rerank_scores(cosine, logits, hubness, *factors), kind="stable")
    matched = [replace(read[i], match=float(np.exp(-np.logaddexp(0.0, -logits[i])))) for i in order]
    unread = [hit for hit in head if hit.path not in seen]
    return [replace(hit, rank=rank) for rank, hit in enumerate([*matched, *unread, *rest], 1)]


def _logits(
    model: MMBert, texts: Sequence[str], heads: Sequence[list[Hit]], seen: Mapping[str, Look]
) -> list[np.ndarray]:
    """Match logits of each query's hits that were seen."""
    places = {path: place for place, path in enumerate(seen)}
    pairs = [[(places[hit.path], text) for hit in head if hit.path in seen] for text, head in enumerate(heads)]
    flat = np.asarray([pair for of_text in pairs for pair in of_text], dtype=np.int64).reshape(-1, 2)
    if not len(flat):
        return [np.empty(0) for _ in heads]
    found = model.match_pairs([look.regions for look in seen.values()], texts, flat)
    return np.split(np.asarray(found, dtype=np.float64), np.cumsum([len(of_text) for of_text in pairs])[:-1])
