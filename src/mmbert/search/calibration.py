"""Calibration: what the score of a hit says about the chance that it is right.

Input: queries whose answer is known (the captions of the index), the scores of their hits and whether these are right.
Output: two numbers that turn a score into a probability (Platt, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

QUERIES = 256
HITS = 20
ENOUGH = 50
"""Fewer queries than this teach nothing."""


@dataclass(frozen=True)
class Calibration:
    """``probability = 1 / (1 + exp(-(slope * score + offset)))``.

    Args:
        slope, offset: of the logit.
        queries: captions it was learned from.
        brier: mean squared error of the probabilities on the half of the queries that did not teach it.
        base: the same of always saying how many are right.
    """

    slope: float
    offset: float
    queries: int
    brier: float
    base: float

    def probability(self, score: float) -> float:
        """That a hit with this score is right."""
        return float(_sigmoid(np.array(self.slope * score + self.offset)))


def calibrate(scores: Array, right: Array) -> Calibration | None:
    """Learn a calibration.

    Args:
        scores: [queries, hits] cosines.
        right: [queries, hits] whether each hit is right.

    Returns:
        None where there are too few queries, none or all hits are right, or a higher score is no better sign.
    """
    queries = len(scores)
    if queries < ENOUGH or right.all() or not right.any():
        return None
    even, odd = slice(0, None, 2), slice(1, None, 2)
    slope, offset = platt(scores[even].ravel(), right[even].ravel())
    held_out = right[odd].ravel().astype(float)
    brier = float(np.mean((_sigmoid(slope * scores[odd].ravel() + offset) - held_out) ** 2))
    base = float(np.mean((right[even].mean() - held_out) ** 2))
    slope, offset = platt(scores.ravel(), right.ravel())
    if slope <= 0:
        return None
    return Calibration(round(slope, 6), round(offset, 6), queries, round(brier, 6), round(base, 6))


def platt(scores: Array, right: Array) -> tuple[float, float]:
    """Slope and offset of the logistic curve through scores and answers.

    Targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1 and 0 (Platt, 1999); Newton's method with step
    halving, as Lin, Lin and Weng (2007) advise.
    """
    positive = int(right.sum())
    negative = right.size - positive
    target = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
    inputs = np.stack([scores.astype(np.float64), np.ones(scores.size)], axis=1)
    weights = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    loss = _loss(inputs @ weights, target)
    for _ in range(100):
        guess = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (guess - target)
        if np.abs(gradient).max() < 1e-7 * scores.size:
            break
        curvature = (inputs * (guess * (1 - guess))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while size > 1e-8 and (lower := _loss(inputs @ (weights - size * step), target)) > loss:
            size /= 2
        if size <= 1e-8:
            break
        weights, loss = weights - size * step, lower
    return float(weights[0]), float(weights[1])


def _loss(logits: Array, target: Array) -> float:
    return float((np.logaddexp(0.0, logits) - target * logits).sum())


def _sigmoid(logits: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -logits))
