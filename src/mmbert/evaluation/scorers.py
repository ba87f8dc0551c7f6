"""Scorers: how well each text and each image of a gallery go together, computed block by block.

Three ways to ask the model: ``embed`` (cosine of the two vectors), ``match`` (both read together, every pair) and
``rerank`` (cosine finds, match re-orders the best). Input: a model and a gallery; output: blocks of scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmbert.api.reranking import encode_carefully, rerank_scores
from mmbert.errors import DataError
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.ranks import Array, Block, spans

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

PAIRS_PER_CALL = 1 << 16
IN_MEMORY_BYTES = 1 << 28
"""A matrix of match scores above 256 MB lives in a temporary file."""


class Scorer(Protocol):
    """Scores of a gallery."""

    def texts(self, start: int, stop: int) -> Array:
        """Scores ``[stop - start, images]`` of these text rows against all images."""
        ...

    def images(self, start: int, stop: int, rows: slice) -> Array:
        """Scores ``[stop - start, len(rows)]`` of these images against the texts at ``rows`` (one language)."""
        ...

    def shown(self, row: int, images: Array) -> tuple[Array | None, Array | None]:
        """For people: cosines and match probabilities of one text row with some images; None or NaN: not computed."""
        ...


class Embedded:
    """Scores are cosines; every distinct text and image is encoded once.

    Args:
        image_vectors: ``[images, D]`` unit rows.
    """

    def __init__(self, model: MMBert, gallery: Gallery, image_vectors: Array, *, progress: bool = False) -> None:
        distinct, self._place = gallery.distinct_texts
        self._text_vectors = finite(model.encode_text(distinct, progress=progress), "text")
        self.image_vectors = finite(image_vectors, "image")

    def with_images(self, vectors: Array) -> Embedded:
        """The same texts against other vectors of the images."""
        other = copy(self)
        other.image_vectors = finite(vectors, "image")
        return other

    def texts(self, start: int, stop: int) -> Array:
        return self._text_vectors[self._place[start:stop]] @ self.image_vectors.T

    def images(self, start: int, stop: int, rows: slice) -> Array:
        return self.image_vectors[start:stop] @ self._text_vectors[self._place[rows]].T

    def shown(self, row: int, images: Array) -> tuple[Array | None, Array | None]:
        return self.texts(row, row + 1)[0, images], None


class Matched:
    """Scores are match logits of every pair: exact, and ``texts x images`` passes through the model."""

    def __init__(self, model: MMBert, gallery: Gallery, *, progress: bool = False) -> None:
        distinct, self._place = gallery.distinct_texts
        self._matrix = _matrix(len(distinct), len(gallery.images))
        for start, stop in _with_bar(spans(len(gallery.images), len(distinct), PAIRS_PER_CALL), progress):
            keys = np.arange(start * len(distinct), stop * len(distinct))
            logits = pair_logits(model, gallery, keys)
            self._matrix[:, start:stop] = logits.reshape(stop - start, len(distinct)).T

    def texts(self, start: int, stop: int) -> Array:
        return np.asarray(self._matrix[self._place[start:stop]])

    def images(self, start: int, stop: int, rows: slice) -> Array:
        return np.asarray(self._matrix[:, start:stop])[self._place[rows]].T

    def shown(self, row: int, images: Array) -> tuple[Array | None, Array | None]:
        return None, sigmoid(self.texts(row, row + 1)[0, images])


class Reranked:
    """Cosines, with the best ``k`` of every query re-ordered by ``rerank_scores``: cosine, match and hubness together.

    For a text the best ``k`` images; for an image the best ``k`` texts of each language. The re-ordered ones stay ahead
    of the others, which keep their order. Where the model gives match no weight, only pairs that are shown are matched.
    """

    def __init__(self, model: MMBert, gallery: Gallery, first: Embedded, k: int, *, progress: bool = False) -> None:
        distinct, self._place = gallery.distinct_texts
        self._first, self._count = first, len(distinct)
        self._second = first.with_images(encode_carefully(model, gallery.images, first.image_vectors))
        self._hubness = model.hubness(self._second.image_vectors)
        self._factors = model.logit_scale, model.rerank_weight, model.hub_weight
        self._best_images = best_of(first.texts, len(gallery.texts), len(gallery.images), k)
        self._best_texts: dict[int, Array] = {}  # by the first row of the language
        for rows in gallery.languages.values():
            block = partial(first.images, rows=rows)
            self._best_texts[rows.start] = best_of(block, len(gallery.images), rows.stop - rows.start, k)
        self._compute = partial(pair_logits, model, gallery)
        self._logits: PairLogits | None = None
        if model.rerank_weight:
            keys = [self._key(self._best_images, self._place[:, None])]
            for start, best in self._best_texts.items():
                keys.append(self._key(np.arange(len(best))[:, None], self._place[start + best]))
            self._logits = PairLogits(keys, self._compute, progress=progress)

    def _key(self, image: Array, place: Array) -> Array:
        return image.astype(np.int64) * self._count + place

    def _match(self, image: Array, place: Array) -> Array:
        """What match adds to the order: logits; zeros where it has no weight."""
        return np.zeros(()) if self._logits is None else self._logits.of(self._key(image, place))

    def texts(self, start: int, stop: int) -> Array:
        best = self._best_images[start:stop]
        match = self._match(best, self._place[start:stop, None])
        cosine = np.take_along_axis(self._second.texts(start, stop), best, axis=1)
        return promote(self._first.texts(start, stop), best, self._joint(cosine, match, self._hubness[best]))

    def images(self, start: int, stop: int, rows: slice) -> Array:
        best = self._best_texts[rows.start][start:stop]
        match = self._match(np.arange(start, stop)[:, None], self._place[rows.start + best])
        cosine = np.take_along_axis(self._second.images(start, stop, rows), best, axis=1)
        joint = self._joint(cosine, match, self._hubness[start:stop, None])
        return promote(self._first.images(start, stop, rows), best, joint)

    def _joint(self, cosine: Array, match: Array, hubness: Array) -> Array:
        return rerank_scores(cosine.astype(np.float64), match, hubness, *self._factors)

    def shown(self, row: int, images: Array) -> tuple[Array | None, Array | None]:
        cosine, _ = self._first.shown(row, images)
        reached = np.isin(images, self._best_images[row])
        match = np.full(len(images), np.nan)
        keys = self._key(images[reached], self._place[row])
        logits = PairLogits([keys], self._compute) if self._logits is None else self._logits
        match[reached] = sigmoid(logits.of(keys))
        return cosine, match


class PairLogits:
    """Match logits of chosen pairs, each computed once.

    Args:
        keys: numbers of the pairs, in arrays of any shape; a pair may come several times.
        compute: sorted distinct keys to their logits.
        progress: show a bar on stderr.
    """

    def __init__(self, keys: Sequence[Array], compute: Callable[[Array], Array], *, progress: bool = False) -> None:
        self._keys = np.unique(np.concatenate([part.ravel() for part in keys]))
        self._logits = np.empty(len(self._keys), dtype=np.float32)
        for start, stop in _with_bar(spans(len(self._keys), 1, PAIRS_PER_CALL), progress):
            self._logits[start:stop] = compute(self._keys[start:stop])

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, keys: Array) -> Array:
        """Logits of these pairs, in the shape of ``keys``."""
        return self._logits[np.searchsorted(self._keys, keys)]


def promote(cosine: Array, best: Array, joint: Array) -> Array:
    """``cosine`` with the ``best`` columns of each row put before all others, in the order of ``joint``.

    Args:
        cosine: ``[rows, columns]``.
        best: ``[rows, k]`` columns.
        joint: ``[rows, k]`` their scores.
    """
    scores = cosine.astype(np.float64)
    above = scores.max(axis=1, keepdims=True) + 1.0 - joint.min(axis=1, keepdims=True)
    np.put_along_axis(scores, best, joint + above, axis=1)
    return scores


def pair_logits(model: MMBert, gallery: Gallery, keys: Array) -> Array:
    """Match logits of pairs, each written ``image * number of distinct texts + text``.

    Sorted keys keep the pairs of an image together, so that it is encoded once.
    """
    distinct, _ = gallery.distinct_texts
    image, text = np.divmod(keys, len(distinct))
    used_images, image = np.unique(image, return_inverse=True)
    used_texts, text = np.unique(text, return_inverse=True)
    logits = model.match_pairs(
        [gallery.images[i] for i in used_images],
        [distinct[i] for i in used_texts],
        np.stack([image, text], axis=1),
    )
    return finite(np.asarray(logits, dtype=np.float32), "match")


def sigmoid(logits: Array) -> Array:
    """Probability of a logit, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def top(scores: Array, k: int) -> Array:
    """Columns of the ``k`` best scores of each row, best first; among equals the first column wins.

    Args:
        scores: ``[rows, columns]``.

    Returns:
        ``[rows, min(k, columns)]`` int32.
    """
    k = min(k, scores.shape[1])
    if 4 * k >= scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
    limit = np.partition(scores, -k, axis=1)[:, -k]
    found = np.empty((len(scores), k), dtype=np.int32)
    for i, (row, least) in enumerate(zip(scores, limit, strict=True)):
        reached = np.flatnonzero(row >= least)
        found[i] = reached[np.argsort(-row[reached], kind="stable")[:k]]
    return found


def best_of(block: Block, queries: int, items: int, k: int) -> Array:
    """[queries, min(k, items)] columns of the best scores of each row, computed block by block."""
    found = [top(block(start, stop), k) for start, stop in spans(queries, items)]
    return np.concatenate(found) if found else np.empty((0, min(k, items)), dtype=np.int32)


def _matrix(rows: int, columns: int) -> Array:
    if rows * columns * 4 <= IN_MEMORY_BYTES:
        return np.empty((rows, columns), dtype=np.float32)
    with tempfile.TemporaryFile(prefix="mmbert-match-") as file:  # the mapping keeps it alive
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, columns))


def finite(values: Array, what: str) -> Array:
    """``values``, all numbers.

    Raises:
        DataError: one is not.
    """
    if not np.isfinite(values).all():
        raise DataError(
            f"the model gives {what} values that are not numbers (NaN)", hint="its weights are damaged or diverged"
        )
    return values


def _with_bar(lots: Iterable[tuple[int, int]], progress: bool) -> Iterable[tuple[int, int]]:
    from tqdm import tqdm

    return tqdm(list(lots), desc="matching", leave=False, disable=not progress)
