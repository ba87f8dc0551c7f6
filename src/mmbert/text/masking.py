"""Whole-word masking: which pieces are hidden, what stands there instead, and what should be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


def mask_whole_words(
    token_ids: np.ndarray,
    word_ids: Sequence[int | None],
    *,
    rate: float,
    mask_id: int,
    vocabulary: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hide a share of the words of one text.

    All pieces of a chosen word are treated alike: ``[MASK]`` (80 %), random tokens (10 %) or unchanged (10 %)
    (Devlin et al., 2019, whole-word variant). If no word is drawn, one is chosen, so that each text with a word has a
    label.

    Args:
        token_ids: [n] ids.
        word_ids: [n] word number of each piece, None for special tokens (which are never hidden).
        rate: chance of each word.
        mask_id: id of the mask token.
        vocabulary: [v] ids that random tokens are drawn from.
        rng: source of randomness.

    Returns:
        [n] ids to feed, [m] positions with a label, [m] the original ids there.
    """
    words: dict[int, list[int]] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            words.setdefault(word, []).append(position)
    fed = token_ids.copy()
    if not words:
        nothing = np.zeros(0, dtype=np.int64)
        return fed, nothing, nothing
    spans = list(words.values())
    chosen = np.flatnonzero(rng.random(len(spans)) < rate)
    if not len(chosen):
        chosen = rng.integers(len(spans), size=1)
    hidden: list[int] = []
    for positions in (spans[i] for i in chosen):
        hidden.extend(positions)
        treatment = rng.random()
        if treatment < MASK_SHARE:
            fed[positions] = mask_id
        elif treatment < MASK_SHARE + RANDOM_SHARE:
            fed[positions] = vocabulary[rng.integers(len(vocabulary), size=len(positions))]
    where = np.asarray(sorted(hidden), dtype=np.int64)
    return fed, where, token_ids[where].astype(np.int64)
