"""The score by which candidates of a search are put in their final order: cosine, match and hubness together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.vision.images import ImageSource

Array = np.ndarray[Any, Any]


def rerank_scores(
    cosine: Array, match: Array, hubness: Array, logit_scale: float, match_weight: float, hub_weight: float
) -> Array:
    """``cosine * logit_scale + match_weight * match - hub_weight * hubness``, elementwise; shapes broadcast.

    Args:
        cosine: of the query's vector and the image's (see ``encode_carefully``).
        match: logit of the pair, read together.
        hubness: of the image, as ``MMBert.hubness`` gives it.
        logit_scale, match_weight, hub_weight: the model's factors (``logit_scale``, ``rerank_weight``, ``hub_weight``).
    """
    return cosine * logit_scale + match_weight * match - hub_weight * hubness


def encode_carefully(model: MMBert, images: Sequence[ImageSource], vectors: Array) -> Array:
    """[n, D] vectors of candidates as re-ranking sees them: the mean over ``model.rerank_views`` views.

    Args:
        model: its configuration says how many views.
        images: the candidates.
        vectors: [n, D] of one view each; returned as they are where the model asks for no more.
    """
    return vectors if model.rerank_views == 1 else model.encode_images(images, views=model.rerank_views)
