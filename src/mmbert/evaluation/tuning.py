"""Choosing how much match logit and hubness count in re-ranking, on validation records."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from mmbert.api.front_door import MMBert
from mmbert.api.reranking import encode_carefully, rerank_scores
from mmbert.data.records import Record
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.scorers import top


class Weights(NamedTuple):
    """Factors of match logit and of hubness in ``rerank_scores``."""

    match: float
    hub: float


MATCH_WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
HUB_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def best_rerank_weights(
    model: MMBert, records: Sequence[Record], *, rerank: int = 20, most: int = 600, seed: int = 0
) -> tuple[Weights, dict[Weights, float]]:
    """The weights with the best text-to-image R@1 after re-ranking.

    Args:
        model: with embeddings and a match head.
        records: with images and captions; not those of the test.
        rerank: candidates per query.
        most: queries, drawn at random.
        seed: of the draw.

    Returns:
        The smallest best pair of ``MATCH_WEIGHTS`` and ``HUB_WEIGHTS`` (of the latter only 0 where the model keeps no
        query bank), and R@1 of each pair.

    Raises:
        DataError: no record has an image and a caption.
    """
    gallery = build_gallery(records)
    asked = np.random.default_rng(seed).permutation(len(gallery.texts))[:most]
    texts = [gallery.texts[row] for row in asked]
    images = model.encode_images(gallery.images)
    vectors = model.encode_text(texts)
    best = top(vectors @ images.T, rerank)
    pairs = np.stack([best.ravel(), np.repeat(np.arange(len(texts)), best.shape[1])], axis=1)
    match = model.match_pairs(gallery.images, texts, pairs).reshape(best.shape)
    careful = encode_carefully(model, gallery.images, images)
    hubness = model.hubness(careful)
    cosine = np.take_along_axis(vectors @ careful.T, best, axis=1)
    right = gallery.image_group[best] == gallery.text_group[asked, None]
    found = {}
    for weights in map(Weights._make, product(MATCH_WEIGHTS, HUB_WEIGHTS if hubness.any() else HUB_WEIGHTS[:1])):
        scores = rerank_scores(cosine, match, hubness[best], model.logit_scale, weights.match, weights.hub)
        found[weights] = float(right[np.arange(len(texts)), scores.argmax(1)].mean())
    return max(found, key=lambda w: (found[w], -w.match, -w.hub)), found
