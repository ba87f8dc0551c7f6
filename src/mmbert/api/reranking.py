"""The score by which candidates of a search are put in their final order: cosine, match and hubness together."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rerank_scores(
    cosine: Array, match: Array, hubness: Array, logit_scale: float, match_weight: float, hub_weight: float
) -> Array:
    """``cosine * logit_scale + match_weight * match - hub_weight * hubness``, of shapes that go together.

    Args:
        cosine: of the query's vector and the image's.
        match: logit of the pair, read together.
        hubness: of the image, as ``MMBert.hubness`` gives it.
        logit_scale, match_weight, hub_weight: the model's factors (``logit_scale``, ``rerank_weight``, ``hub_weight``).
    """
    return cosine * logit_scale + match_weight * match - hub_weight * hubness
