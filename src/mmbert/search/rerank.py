"""Re-ranking: the first hits of a search are read together with the query and put in a better order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmbert.api.reranking import encode_carefully, rerank_scores
from mmbert.api.usable import usable_images
from mmbert.data.records import BadRecords
from mmbert.errors import ImageError

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.search.index import Hit
    from mmbert.vision.images import ImageSource


def rerank(model: MMBert, text: str, hits: Sequence[Hit], first: int) -> list[Hit]:
    """Put the ``first`` hits in the order of ``rerank_scores``: cosine, match and hubness together.

    The others stay behind them in their order. A hit whose image cannot be opened any more keeps no match and comes
    right after the re-ranked ones, with a warning.

    Returns:
        The same hits with ``match`` (probability) and ``rank`` set.
    """
    head, rest = list(hits[:first]), list(hits[first:])
    bad = BadRecords(skip=True)
    images: list[ImageSource] = [hit.image or hit.path for hit in head]
    readable = list(range(len(head)))
    try:
        logits = _logits(model, text, images)
    except ImageError:
        readable = usable_images(images, [hit.path for hit in head], bad)
        if len(readable) == len(head):
            raise
        logits = _logits(model, text, [images[i] for i in readable])
        for where, what in bad:
            warnings.warn(f"{where}: {what}; not re-ranked (mmbert index --prune tidies up)", stacklevel=3)
    joint = np.empty(0)
    if readable:
        seen = np.stack([head[i].vector for i in readable])
        vectors = encode_carefully(model, [images[i] for i in readable], seen)
        cosine, hubness = vectors.astype(np.float64) @ model.encode_text([text])[0], model.hubness(vectors)
        joint = rerank_scores(cosine, logits, hubness, model.logit_scale, model.rerank_weight, model.hub_weight)
    probability = np.exp(-np.logaddexp(0.0, -logits))
    order = np.argsort(-joint, kind="stable")
    matched = [replace(head[readable[i]], match=float(probability[i])) for i in order]
    unread = [hit for i, hit in enumerate(head) if i not in set(readable)]
    return [replace(hit, rank=rank) for rank, hit in enumerate([*matched, *unread, *rest], 1)]


def _logits(model: MMBert, text: str, images: Sequence[ImageSource]) -> np.ndarray:
    if not images:
        return np.empty(0)
    pairs = np.stack([np.arange(len(images)), np.zeros(len(images), dtype=np.int64)], axis=1)
    return np.asarray(model.match_pairs(images, [text], pairs), dtype=np.float64)
