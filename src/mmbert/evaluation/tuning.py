"""Choosing how much the match logit counts in re-ranking, on validation records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.scorers import top

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

    Raises:
        DataError: no record has an image and a caption.
    """
    gallery = build_gallery(records)
    asked = np.random.default_rng(seed).permutation(len(gallery.texts))[:most]
    texts = [gallery.texts[row] for row in asked]
    cosine = model.encode_text(texts) @ model.encode_images(gallery.images).T
    best = top(cosine, rerank)
    pairs = np.stack([best.ravel(), np.repeat(np.arange(len(texts)), best.shape[1])], axis=1)
    match = model.match_pairs(gallery.images, texts, pairs).reshape(best.shape)
    base = np.take_along_axis(cosine, best, axis=1) * model.logit_scale
    right = gallery.image_group[best] == gallery.text_group[asked, None]
    found = {}
    for weight in WEIGHTS:
        first = (base + weight * match).argmax(1)
        found[weight] = float(right[np.arange(len(texts)), first].mean())
    return max(found, key=lambda w: (found[w], -w)), found
