"""Choosing how much match logit and hubness count in re-ranking, on validation records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def best_weights(figure: Callable[[Weights], float], *, hubs: bool) -> tuple[Weights, dict[Weights, float]]:
    """Try every pair of ``MATCH_WEIGHTS`` and, with ``hubs``, ``HUB_WEIGHTS`` (without: only 0 of these).

    Args:
        figure: how good weights are; more is better.

    Returns:
        the smallest of the best pairs, and the figure of each pair.
    """
    pairs = map(Weights._make, product(MATCH_WEIGHTS, HUB_WEIGHTS if hubs else HUB_WEIGHTS[:1]))
    figures = {weights: figure(weights) for weights in pairs}
    return max(figures, key=lambda w: (figures[w], -w.match, -w.hub)), figures


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
        as :func:`best_weights`, with R@1 of each pair; hubness is tried where the model keeps a query bank.

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

    def first_is_right(weights: Weights) -> float:
        scores = rerank_scores(cosine, match, hubness[best], model.logit_scale, weights.match, weights.hub)
        return float(right[np.arange(len(texts)), scores.argmax(1)].mean())

    return best_weights(first_is_right, hubs=bool(hubness.any()))
