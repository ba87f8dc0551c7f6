"""Choosing how much the match logit counts in re-ranking, on validation records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record

WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


def best_rerank_weight(
    model: MMBert, records: Sequence[Record], *, rerank: int = 20, most: int = 600, seed: int = 0
) -> tuple[float, dict[float, float]]:
    """The weight of the match logit with the best text-to-image R@1 after re-ranking.

    Args:
        model: with embeddings and a match head.
        records: with images and captions; not those of the test.
        rerank: candidates per query.
        most: queries, drawn at random.
        seed: of the draw.

    Returns:
        The smallest best weight among ``WEIGHTS``, and R@1 of each.
    """
    pictured = [(record.image, record) for record in records if record.image is not None]
    queries = [(text, r.group) for _, r in pictured for texts in r.captions.values() for text in texts]
    drawn = np.random.default_rng(seed).permutation(len(queries))[:most]
    queries = [queries[i] for i in drawn]
    images = [image for image, _ in pictured]
    image_group = np.array([record.group for _, record in pictured], dtype=object)
    text_group = np.array([group for _, group in queries], dtype=object)
    cosine = model.encode_text([text for text, _ in queries]) @ model.encode_images(images).T
    best = np.argsort(-cosine, axis=1, kind="stable")[:, :rerank]
    pairs = np.stack([best.ravel(), np.repeat(np.arange(len(queries)), best.shape[1])], axis=1)
    match = model.match_pairs(images, [text for text, _ in queries], pairs).reshape(best.shape)
    base = np.take_along_axis(cosine, best, axis=1) * model.logit_scale
    right = image_group[best] == text_group[:, None]
    found = {}
    for weight in WEIGHTS:
        first = (base + weight * match).argmax(1)
        found[weight] = float(right[np.arange(len(queries)), first].mean())
    return max(found, key=lambda w: (found[w], -w)), found
