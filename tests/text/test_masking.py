"""Whole-word masking, against its description and a second implementation of what may happen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.text.masking import mask_whole_words

MASK = 4
VOCABULARY = (5, 1000)


def mask(ids: np.ndarray, words: list[int | None], seed: int, rate: float = 0.15):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    return mask_whole_words(ids, words, rate=rate, mask_id=MASK, vocabulary=np.arange(*VOCABULARY), rng=rng)


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, list[int | None]]:
    """``[CLS]``, words of 1 to 4 pieces, ``[SEP]``, perhaps a second text; original ids are above the vocabulary that
    random tokens come from, so that what happened to a token can be told by looking at it."""
    words: list[int | None] = [None]
    for _ in range(draw(st.integers(1, 2))):
        for pieces in draw(st.lists(st.integers(1, 4), max_size=8)):
            number = sum(w is not None for w in words) + 100
            words += [number] * pieces
        words.append(None)
    return np.arange(2000, 2000 + len(words)), words


@settings(max_examples=150, deadline=None)
@given(text=texts(), seed=st.integers(0, 2**32 - 1), rate=st.floats(0.01, 0.9))
def test_pieces_of_a_word_are_treated_alike_and_special_tokens_never(
    text: tuple[np.ndarray, list[int | None]], seed: int, rate: float
) -> None:
    ids, words = text
    before = ids.copy()
    fed, places, labels = mask(ids, words, seed, rate)
    assert np.array_equal(ids, before), "the given ids were changed"
    assert len(fed) == len(ids)
    labelled = set(places.tolist())
    assert places.tolist() == sorted(labelled)
    assert labels.tolist() == [2000 + p for p in places]
    for position, word in enumerate(words):
        if word is None:
            assert position not in labelled
        if position not in labelled:
            assert fed[position] == ids[position]
    for word in set(words) - {None}:
        positions = [i for i, w in enumerate(words) if w == word]
        assert {p in labelled for p in positions} in ({True}, {False}), "a part of a word has labels"
        masked = [fed[p] == MASK for p in positions]
        kept = [fed[p] == ids[p] for p in positions]
        drawn = [VOCABULARY[0] <= fed[p] < VOCABULARY[1] for p in positions]
        assert all(masked) or all(kept) or all(drawn)
    if any(w is not None for w in words):
        assert labelled, "a text with words has no label"


def test_the_seed_decides_everything() -> None:
    ids, words = np.arange(2000, 2200), [i // 3 for i in range(200)]
    first, again, other = mask(ids, words, 1), mask(ids, words, 1), mask(ids, words, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_rates_are_those_of_bert(rate: float) -> None:
    """20,000 words of one piece: 15 % labelled, of these 80 % masked, 10 % random, 10 % kept."""
    count = 20_000
    ids = np.arange(2000, 2000 + count)
    fed, places, _ = mask(ids, list(range(count)), 0, rate)
    assert len(places) / count == pytest.approx(rate, abs=0.01)
    chosen = fed[places]
    kept = (chosen == ids[places]).mean()
    masked = (chosen == MASK).mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.015)
    drawn = chosen[(chosen != ids[places]) & (chosen != MASK)]
    assert drawn.min() >= VOCABULARY[0]
    assert drawn.max() < VOCABULARY[1]
    assert len(np.unique(drawn)) > 0.15 * (VOCABULARY[1] - VOCABULARY[0]), "random tokens come from few ids"
    assert drawn.mean() == pytest.approx(sum(VOCABULARY) / 2, rel=0.1)


def test_long_words_are_as_likely_as_short_ones() -> None:
    words = [i for i in range(6000) for _ in range(1 if i % 2 else 5)]
    _, places, _ = mask(np.arange(2000, 2000 + len(words)), words, 3)
    chosen = {words[p] for p in places}
    odd = sum(w % 2 for w in chosen)
    assert odd / len(chosen) == pytest.approx(0.5, abs=0.05)


def test_pieces_of_a_randomly_replaced_word_are_drawn_one_by_one() -> None:
    words = [i // 4 for i in range(8000)]
    fed, places, _ = mask(np.arange(2000, 10000), words, 0, 0.9)
    spans = [fed[4 * w : 4 * w + 4] for w in {words[p] for p in places}]
    drawn = [s for s in spans if (s >= 5).all() and (s < 1000).all()]
    assert len(drawn) > 50
    assert sum(len(set(s.tolist())) > 1 for s in drawn) > 0.9 * len(drawn)


def test_a_text_without_words_is_left_alone() -> None:
    fed, places, labels = mask(np.array([2, 3]), [None, None], 0)
    assert fed.tolist() == [2, 3]
    assert len(places) == len(labels) == 0
    assert places.dtype == labels.dtype == np.int64


def test_if_no_word_is_drawn_each_is_as_likely_to_be_the_one() -> None:
    counts = np.zeros(4)
    for seed in range(2000):
        _, places, _ = mask(np.arange(2000, 2004), [0, 1, 2, 3], seed, rate=1e-9)
        assert len(places) == 1
        counts[places[0]] += 1
    assert counts.min() > 400


class Scripted:
    """A generator whose draws are written down."""

    def __init__(self, words: list[float], treatments: list[float], tokens: list[list[int]]) -> None:
        self.words, self.treatments, self.tokens = words, iter(treatments), iter(tokens)

    def random(self, size: int | None = None) -> np.ndarray | float:
        if size is None:
            return next(self.treatments)
        assert size == len(self.words)
        return np.array(self.words)

    def integers(self, high: int, size: int) -> np.ndarray:
        drawn = next(self.tokens)
        assert (high, size) == (VOCABULARY[1] - VOCABULARY[0], len(drawn))
        return np.array(drawn)


def test_by_hand() -> None:
    """Five words of 1, 2, 2, 1 and 1 pieces; all but the third are drawn: masked, replaced, kept, masked."""
    ids = np.array([2, 70, 71, 72, 73, 74, 75, 76, 3])
    words = [None, 0, 1, 1, 2, 2, 3, 4, None]
    draws = Scripted([0.1, 0.0, 0.15, 0.149, 0.05], [0.79, 0.81, 0.91, 0.0], [[10, 995 - 1]])
    fed, places, labels = mask_whole_words(
        ids,
        words,
        rate=0.15,
        mask_id=MASK,
        vocabulary=np.arange(*VOCABULARY),
        rng=draws,  # type: ignore[arg-type]
    )
    assert fed.tolist() == [2, MASK, 15, 999, 73, 74, 75, MASK, 3]
    assert places.tolist() == [1, 2, 3, 6, 7]
    assert labels.tolist() == [70, 71, 72, 75, 76]
