"""How a tokenizer fits each language, counted by hand; and what a temperature draws."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.errors import ConfigError
from mmbert.text.coverage import coverage, sampled
from mmbert.text.tokenizer import KINDS, SPECIAL_TOKENS, train_tokenizer

GERMAN = ["ein Hund im Schnee", "ein Ball im Gras", "Hund und Ball"]
RUSSIAN = ["собака и мяч", "мяч в снегу"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_counted_as_it_cuts(kind: str) -> None:
    tokenizer = train_tokenizer(GERMAN * 4, vocab_size=60, kind=kind, special=["[2de]", "[2de]", "[MASK]"])
    assert len(tokenizer) <= 60
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert tokenizer.convert_tokens_to_ids("[2de]") == len(tokenizer) - 1
    assert tokenizer("[2de]", add_special_tokens=False)["input_ids"] == [len(tokenizer) - 1]
    german, russian = coverage(tokenizer, {"de": GERMAN, "und": ["", " "], "ru": RUSSIAN})
    pieces = [piece for text in GERMAN for piece in tokenizer.tokenize(text)]
    assert german.texts == 3
    assert german.unknown_rate == 0
    assert german.characters_covered == 1
    assert german.pieces_per_word == pytest.approx(len(pieces) / 11)
    assert german.characters_per_piece == pytest.approx(sum(len(t.replace(" ", "")) for t in GERMAN) / len(pieces))
    assert german.vocabulary_share == pytest.approx(len(set(pieces)) / (len(tokenizer) - 6))
    assert russian.unknown_rate > 0.4
    assert russian.characters_covered < 0.3
    assert russian.vocabulary_share < german.vocabulary_share
    assert tokenizer.decode(tokenizer("ein Hund")["input_ids"], skip_special_tokens=True) == "ein Hund"


def test_a_part_of_the_characters_is_covered() -> None:
    tokenizer = train_tokenizer(["abc abc", "ab"] * 3, vocab_size=20)
    (row,) = coverage(tokenizer, {"x": ["abc ж abc ж"]})
    assert row.characters_covered == pytest.approx(6 / 8)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.floats(1, 20), st.integers(1, 200))
def test_shares_follow_the_temperature(counts: list[int], temperature: float, limit: int) -> None:
    texts = {str(n): [f"{n}/{i}" for i in range(count)] for n, count in enumerate(counts)}
    drawn = list(sampled(texts, temperature=temperature, limit=limit, seed=3))
    total = min(limit, sum(counts))
    weights = [count ** (1 / temperature) for count in counts]
    found = Counter(text.split("/")[0] for text in drawn)
    for number, weight in enumerate(weights):
        assert abs(found[str(number)] - total * weight / sum(weights)) < 1 + 1e-6
    assert len(drawn) == total
    for number, count in enumerate(counts):  # none is drawn twice before all were drawn once
        times = Counter(text for text in drawn if text.startswith(f"{number}/"))
        assert max(times.values(), default=0) - (min(times.values(), default=0) if len(times) == count else 0) <= 1
    assert drawn == list(sampled(texts, temperature=temperature, limit=limit, seed=3))


def test_a_small_limit_is_kept_though_no_language_has_half_a_share() -> None:
    assert len(list(sampled(dict.fromkeys("abcdefgh", GERMAN), limit=3))) == 3


def test_a_temperature_of_one_leaves_texts_as_they_are() -> None:
    assert list(sampled({"de": GERMAN, "fr": [], "ru": RUSSIAN})) == GERMAN + RUSSIAN
    with pytest.raises(ConfigError, match=r"temperature 0\.5"):
        list(sampled({"de": GERMAN}, temperature=0.5))


def test_settings_that_do_not_go_together_are_errors() -> None:
    with pytest.raises(ConfigError, match="no tokenizer of kind 'bytes'"):
        train_tokenizer(GERMAN, vocab_size=60, kind="bytes")
    with pytest.raises(ConfigError, match="allow more"):
        train_tokenizer(GERMAN, vocab_size=8, special=["[2de]", "[2en]", "[2fr]"])
    for kind in KINDS:
        with pytest.raises(ConfigError, match="cannot train a tokenizer of 12 entries"):
            train_tokenizer(GERMAN, vocab_size=12, kind=kind)
