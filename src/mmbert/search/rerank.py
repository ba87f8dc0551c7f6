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
    from mmbert.api.front_door import KeptRegions, MMBert
    from mmbert.search.index import Hit
    from mmbert.vision.images import ImageSource


def rerank_many(model: MMBert, asked: Sequence[tuple[str, Sequence[Hit], int]]) -> list[list[Hit]]:
    """Put the first hits of each query in the order of ``rerank_scores``: cosine, match and hubness.

    The others stay behind them in their order. A hit whose image cannot be opened any more keeps no match and comes
    right after the re-ranked ones, with a warning. The pairs of all queries go through the model together.

    Args:
        asked: text, hits, and how many of them are re-ranked.

    Returns:
        The same hits with ``match`` (probability) and ``rank`` set.
    """
    heads = [(text, list(hits[:first])) for text, hits, first in asked]
    if not heads:
        return []
    logits, queries = _logits(model, heads), model.encode_text([text for text, _ in heads])
    return [
        _ordered(model, query, head, found, list(hits[first:]))
        for query, (_, head), found, (_, hits, first) in zip(queries, heads, logits, asked, strict=True)
    ]


def _ordered(model: MMBert, query: np.ndarray, head: list[Hit], logits: np.ndarray, rest: list[Hit]) -> list[Hit]:
    """One query's hits in their new order by its vector; ``logits`` is NaN for those that could not be read."""
    readable = np.flatnonzero(~np.isnan(logits))
    joint = np.empty(0)
    if len(readable):
        vectors = _vectors(model, [head[i] for i in readable])
        cosine, hubness = vectors.astype(np.float64) @ query, model.hubness(vectors)
        factors = model.logit_scale, model.rerank_weight, model.hub_weight
        joint = rerank_scores(cosine, logits[readable], hubness, *factors)
    order = readable[np.argsort(-joint, kind="stable")]
    matched = [replace(head[i], match=float(np.exp(-np.logaddexp(0.0, -logits[i])))) for i in order]
    unread = [hit for hit, logit in zip(head, logits, strict=True) if np.isnan(logit)]
    return [replace(hit, rank=rank) for rank, hit in enumerate([*matched, *unread, *rest], 1)]


def _vectors(model: MMBert, hits: Sequence[Hit]) -> np.ndarray:
    """[n, D] vectors of the hits' images, looked at again where the index does not keep regions instead of images."""
    vectors = np.stack([hit.vector for hit in hits])
    if any(hit.regions is not None for hit in hits):
        return vectors
    return encode_carefully(model, [hit.image or hit.path for hit in hits], vectors)


def _logits(model: MMBert, heads: Sequence[tuple[str, list[Hit]]]) -> list[np.ndarray]:
    """Match logits of each query's hits; NaN where the image cannot be opened."""
    places: dict[str, int] = {}
    images: list[ImageSource | KeptRegions] = []
    names: list[str] = []
    pairs: list[tuple[int, int]] = []
    for text, (_, hits) in enumerate(heads):
        for hit in hits:
            if hit.path not in places:
                places[hit.path] = len(images)
                images.append(_source(hit))
                names.append(hit.path)
            pairs.append((places[hit.path], text))
    if not pairs:
        return [np.empty(0) for _ in heads]
    texts = [text for text, _ in heads]
    chosen = np.asarray(pairs, dtype=np.int64)
    try:
        found = np.asarray(model.match_pairs(images, texts, chosen), dtype=np.float64)
    except ImageError:
        found = _readable_logits(model, images, names, texts, chosen)
    return np.split(found, np.cumsum([len(hits) for _, hits in heads])[:-1])


def _readable_logits(
    model: MMBert, images: Sequence[ImageSource | KeptRegions], names: list[str], texts: list[str], pairs: np.ndarray
) -> np.ndarray:
    """The same, after a look at which images can be opened at all."""
    from mmbert.api.front_door import KeptRegions

    bad = BadRecords(skip=True)
    files = [(i, image) for i, image in enumerate(images) if not isinstance(image, KeptRegions)]
    opened = usable_images([image for _, image in files], [names[i] for i, _ in files], bad)
    if len(opened) == len(files):  # they all open, and yet the model refused one: not ours to skip
        return np.asarray(model.match_pairs(images, texts, pairs), dtype=np.float64)
    for where, what in bad:
        warnings.warn(f"{where}: {what}; not re-ranked (mmbert index --prune tidies up)", stacklevel=5)
    gone = {i for i, _ in files} - {files[i][0] for i in opened}
    kept = [i for i in range(len(images)) if i not in gone]
    place = np.full(len(images), -1)
    place[kept] = np.arange(len(kept))
    readable = place[pairs[:, 0]] >= 0
    found = np.full(len(pairs), np.nan)
    if readable.any():
        left = np.stack([place[pairs[readable, 0]], pairs[readable, 1]], axis=1)
        found[readable] = model.match_pairs([images[i] for i in kept], texts, left)
    return found


def _source(hit: Hit) -> ImageSource | KeptRegions:
    """What to match: the kept regions where the index has them, else the image."""
    if hit.regions is None:
        return hit.image or hit.path
    from mmbert.api.front_door import KeptRegions

    return KeptRegions(np.frombuffer(hit.regions, dtype=np.float16).reshape(hit.region_count, -1))
