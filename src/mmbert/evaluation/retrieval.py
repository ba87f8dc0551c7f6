"""Cross-modal retrieval: a model and records go in, recall at 1, 5 and 10 in both directions out.

Every caption is a query for images; every image is a query for the captions of one language at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from mmbert import plugins
from mmbert.api.first_states import comparable
from mmbert.api.usable import encode_usable_images, usable_images
from mmbert.data.records import BadRecords, Record
from mmbert.errors import DataError, UsageError
from mmbert.evaluation import ranks
from mmbert.evaluation.gallery import Gallery, build_gallery
from mmbert.evaluation.ranks import Array, Report
from mmbert.evaluation.scorers import Embedded, Matched, Reranked, Scorer, top

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

Mode = Literal["embed", "match", "rerank"]
MODES: tuple[str, ...] = get_args(Mode)
IMAGES_PER_LOT = 512


def recall_report(
    scores: Array,
    text_group: Sequence[Any] | Array,
    image_group: Sequence[Any] | Array,
    text_language: Sequence[str] | Array,
) -> Report:
    """Recall at 1, 5 and 10 and median rank from a matrix of scores.

    A hit is any gallery item of the query's group; its rank is that of the best such item, and a wrong item of the same
    score ranks before it. Image to text: the gallery is one language's texts at a time. Queries without a right answer
    in the gallery are left out, and so is a language in which no query has one.

    Args:
        scores: ``[n_texts, n_images]``, higher is better.
        text_group: ``[n_texts]``.
        image_group: ``[n_images]``; texts and images of one group belong together.
        text_language: ``[n_texts]``.

    Returns:
        ``{"text_to_image": {"mean": {"R@1", "R@5", "R@10", "median_rank"}, "en": {...}, ...}, "image_to_text": {...}}``
        with fractions in 0..1; ``mean`` is the unweighted mean over languages.

    Raises:
        UsageError: the shapes do not fit.
        DataError: a score is NaN, or no text belongs to any image.
    """
    scores = np.asarray(scores)
    texts, images = len(text_group), len(image_group)
    if scores.shape != (texts, images) or len(text_language) != texts:
        raise UsageError(
            f"scores {list(scores.shape)}, {texts} text groups, {images} image groups and {len(text_language)} "
            "languages do not fit together",
            hint="scores are [n_texts, n_images]",
        )
    numbers, _ = ranks.as_numbers([*_plain(text_group), *_plain(image_group)])
    asked, shown = numbers[:texts], numbers[texts:]
    language = np.asarray(text_language, dtype=object)
    text_to_image, image_to_text = {}, {}
    for name in dict.fromkeys(_plain(text_language)):
        rows = np.flatnonzero(language == name)
        part = scores[rows]
        text_to_image[name] = ranks.ranks_by_block(_rows_of(part), asked[rows], shown)
        image_to_text[name] = ranks.ranks_by_block(_rows_of(part.T), shown, asked[rows])
    return ranks.report(text_to_image, image_to_text)


def evaluate_retrieval(
    model: MMBert,
    records: Sequence[Record],
    *,
    languages: Sequence[str] | None = None,
    mode: Mode = "embed",
    rerank: int = 10,
    progress: bool = False,
) -> Report:
    """Recall of ``model`` on ``records``, in the form of ``recall_report``.

    Each caption is a query of its own; records of one group (and records with the same image) are all right answers.
    A caption that a group has twice in one language counts once.

    Args:
        languages: which ones to evaluate; all that have captions where None.
        mode: ``embed`` ranks by cosine (in a model without embeddings that of first states), ``match`` by the match
            logit of every pair, ``rerank`` lets the match logit re-order each query's best ``rerank`` by
            ``rerank_scores`` (cosine, match and hubness).

    Raises:
        UsageError: unknown mode or language.
        DataError: no record has an image and a caption; an image cannot be opened; the model gives NaN.
    """
    return Retrieval(model, records, languages=languages, mode=mode, rerank=rerank, progress=progress).report()


@dataclass(frozen=True)
class Found:
    """One answer to a query: the image's place in the gallery, what the model thinks of it, whether it is right."""

    image: int
    cosine: float | None
    match: float | None
    right: bool


@dataclass(frozen=True)
class Answer:
    """A query, its best images and the rank of the best right one."""

    text: str
    language: str
    gloss: str | None
    found: tuple[Found, ...]
    rank: int


@dataclass(frozen=True)
class Said:
    """One caption found for an image: what it says, in English too where it is foreign, and whether it is right."""

    text: str
    gloss: str | None
    cosine: float | None
    match: float | None
    right: bool


@dataclass(frozen=True)
class Description:
    """An image, its best captions in one language and the rank of the best right one; 0 where there is none."""

    image: int
    language: str
    said: tuple[Said, ...]
    rank: int


class Retrieval:
    """A model's answers on a set of records: encode once, then ask for figures and examples.

    Args and errors as for ``evaluate_retrieval``; with ``bad`` set to skip, images that cannot be opened are noted
    there and left out.
    """

    def __init__(
        self,
        model: MMBert,
        records: Sequence[Record],
        *,
        languages: Sequence[str] | None = None,
        mode: Mode = "embed",
        rerank: int = 10,
        progress: bool = False,
        bad: BadRecords | None = None,
    ) -> None:
        as_mode(mode, rerank)
        bad = bad or BadRecords()
        gallery = build_gallery((records[i] for i in range(len(records))), languages)
        self._scorer: Scorer
        if mode == "match":
            if bad.skip:
                gallery = _keep(gallery, usable_images(gallery.images, gallery.image_origin, bad))
            self._scorer = Matched(model, gallery, progress=progress)
        else:
            model = comparable(model) if mode == "embed" else model
            gallery, vectors = encode_gallery(model, gallery, bad, progress)
            first = Embedded(model, gallery, vectors, progress=progress)
            self._scorer = first if mode == "embed" else Reranked(model, gallery, first, rerank, progress=progress)
        self.gallery = gallery

    def report(self) -> Report:
        """The figures, as in ``recall_report``."""
        gallery, scorer = self.gallery, self._scorer
        text_ranks = ranks.ranks_by_block(scorer.texts, gallery.text_group, gallery.image_group)
        image_to_text = {}
        for language, rows in gallery.languages.items():
            block = partial(scorer.images, rows=rows)
            image_to_text[language] = ranks.ranks_by_block(block, gallery.image_group, gallery.text_group[rows])
        return ranks.report({name: text_ranks[rows] for name, rows in gallery.languages.items()}, image_to_text)

    def answer(self, row: int, k: int = 5) -> Answer:
        """The best ``k`` images for text ``row`` of the gallery."""
        gallery = self.gallery
        scores, group = self._scorer.texts(row, row + 1), gallery.text_group[row]
        best = top(scores, k)[0]
        cosine, match = self._scorer.shown(row, best)
        language, gloss = gallery.language_of(row), gallery.gloss.get(int(group))
        found = tuple(
            Found(int(image), _number(cosine, i), _number(match, i), bool(gallery.image_group[image] == group))
            for i, image in enumerate(best)
        )
        rank = int(ranks.ranks(scores, gallery.text_group[row : row + 1], gallery.image_group)[0])
        return Answer(gallery.texts[row], language, None if language == "en" else gloss, found, rank)

    def describe(self, image: int, language: str, k: int = 5) -> Description:
        """The best ``k`` captions of ``language`` for an image of the gallery."""
        gallery, rows = self.gallery, self.gallery.languages[language]
        scores, group = self._scorer.images(image, image + 1, rows), gallery.image_group[image : image + 1]
        found = [self._said(rows.start + int(row), image, language) for row in top(scores, k)[0]]
        rank = int(ranks.ranks(scores, group, gallery.text_group[rows])[0])
        return Description(image, language, tuple(found), rank)

    def _said(self, row: int, image: int, language: str) -> Said:
        gallery, group = self.gallery, int(self.gallery.text_group[row])
        cosine, match = self._scorer.shown(row, np.array([image]))
        gloss = None if language == "en" else gallery.gloss.get(group)
        right = group == int(gallery.image_group[image])
        return Said(gallery.texts[row], gloss, _number(cosine, 0), _number(match, 0), right)

    def sample(self, per_language: int = 3, k: int = 5, seed: int = 0) -> list[Answer]:
        """Answers to ``per_language`` texts of each language, drawn at random among those that have an answer."""
        answers: list[Answer] = []
        for number, rows in enumerate(self.gallery.languages.values()):
            askable = rows.start + np.flatnonzero(np.isin(self.gallery.text_group[rows], self.gallery.image_group))
            count = min(per_language, len(askable))
            drawn = np.random.default_rng([seed, number]).choice(askable, size=count, replace=False)
            answers.extend(self.answer(int(row), k) for row in drawn)
        return answers

    def sample_images(self, per_language: int = 3, k: int = 5, seed: int = 0) -> list[Description]:
        """Captions of each language for ``per_language`` images, drawn at random among those that have one in it."""
        described: list[Description] = []
        for number, (language, rows) in enumerate(self.gallery.languages.items()):
            askable = np.flatnonzero(np.isin(self.gallery.image_group, self.gallery.text_group[rows]))
            count = min(per_language, len(askable))
            drawn = np.random.default_rng([seed, number]).choice(askable, size=count, replace=False)
            described.extend(self.describe(int(image), language, k) for image in drawn)
        return described


def as_mode(mode: str, rerank: int) -> Mode:
    """``mode``, checked.

    Raises:
        UsageError: unknown mode, or nothing to re-rank.
    """
    if mode not in MODES:
        close = plugins.nearest(mode, MODES)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(MODES)}"
        raise UsageError(f"unknown mode {mode!r}", hint=hint)
    if mode == "rerank" and rerank < 1:
        raise UsageError(f"cannot re-rank the best {rerank}", hint="rerank is at least 1")
    return cast(Mode, mode)


def encode_gallery(model: MMBert, gallery: Gallery, bad: BadRecords, progress: bool = False) -> tuple[Gallery, Array]:
    """Encode all images in batches; an image that cannot be opened costs a second attempt at its own batch only.

    Returns:
        the gallery without images that cannot be opened, and [images, D] unit vectors of the others.

    Raises:
        DataError: none of them can be opened, or one cannot and ``bad`` does not skip.
    """
    from tqdm import tqdm

    kept: list[int] = []
    vectors: list[Array] = []
    lots = range(0, len(gallery.images), IMAGES_PER_LOT)
    for start in tqdm(lots, desc="images", leave=False, disable=not progress):
        lot = slice(start, start + IMAGES_PER_LOT)
        positions, rows = encode_usable_images(model, gallery.images[lot], gallery.image_origin[lot], bad)
        kept.extend(start + position for position in positions)
        vectors.append(rows)
    return _keep(gallery, kept), np.concatenate(vectors)


def _keep(gallery: Gallery, kept: list[int]) -> Gallery:
    if not kept:
        raise DataError("none of the images can be opened: nothing to evaluate")
    return gallery if len(kept) == len(gallery.images) else gallery.without_images(kept)


def _number(values: Array | None, i: int) -> float | None:
    return None if values is None or np.isnan(values[i]) else float(values[i])


def _plain(values: Sequence[Any] | Array) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _rows_of(scores: Array) -> ranks.Block:
    return lambda start, stop: scores[start:stop]
