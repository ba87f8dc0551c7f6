"""How well a tokenizer fits texts, by language; and drawing texts so that small languages count for more.

In: texts by language. Out: a corpus to train on, or a row of figures for each language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from mmbert.errors import ConfigError

MOST_TEXTS = 5000
"""Texts of a language that its figures are taken from, drawn at random where there are more."""
_LOT = 1000


@dataclass(frozen=True)
class Coverage:
    """A language's row.

    Attributes:
        language: its code.
        texts: how many there are.
        unknown_rate: share of its pieces that are ``[UNK]``.
        pieces_per_word: pieces for each word between blanks (languages written without blanks have few, long words).
        characters_per_piece: letters and signs, blanks not counted, for each piece.
        characters_covered: share of its characters that are in a known piece.
        vocabulary_share: share of the vocabulary (without special tokens) that it uses.
    """

    language: str
    texts: int
    unknown_rate: float
    pieces_per_word: float
    characters_per_piece: float
    characters_covered: float
    vocabulary_share: float


def coverage(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Sequence[str]], seed: int = 0) -> list[Coverage]:
    """A row for each language, in the order given; languages without text are left out."""
    return [_row(tokenizer, language, found, seed) for language, found in texts.items() if any(map(str.strip, found))]


def _row(tokenizer: PreTrainedTokenizerBase, language: str, texts: Sequence[str], seed: int) -> Coverage:
    order = np.random.default_rng(seed).permutation(len(texts))[:MOST_TEXTS] if len(texts) > MOST_TEXTS else None
    chosen = list(texts) if order is None else [texts[i] for i in order]
    used: set[int] = set()
    pieces = unknown = words = characters = lost = 0
    for start in range(0, len(chosen), _LOT):
        lot = chosen[start : start + _LOT]
        encoded = tokenizer(lot, add_special_tokens=False, return_offsets_mapping=True)
        for text, ids, spans in zip(lot, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            used.update(ids)
            pieces += len(ids)
            words += len(text.split())
            characters += _letters(text)
            holes = [span for i, span in zip(ids, spans, strict=True) if i == tokenizer.unk_token_id]
            unknown += len(holes)
            lost += sum(_letters(text[first:end]) for first, end in holes)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    return Coverage(
        language,
        len(texts),
        unknown / max(1, pieces),
        pieces / max(1, words),
        characters / max(1, pieces),
        1 - lost / max(1, characters),
        len(used - special) / max(1, len(tokenizer) - len(special)),
    )


def _letters(text: str) -> int:
    return sum(not character.isspace() for character in text)


def sampled(
    texts: Mapping[str, Sequence[str]], *, temperature: float = 1.0, limit: int | None = None, seed: int = 0
) -> Iterator[str]:
    """Texts to train on, language by language.

    A language of n texts gets the share n^(1/T) of all (Devlin, 2018; Conneau and Lample, 2019): T = 1 leaves shares as
    they are, larger T brings them closer, by repeating texts of small languages and leaving out some of large ones.

    Args:
        texts: by language.
        temperature: T, at least 1.
        limit: texts in all; None: as many as there are.
        seed: of what is drawn.

    Raises:
        ConfigError: a temperature below 1, or nothing is asked for.
    """
    if temperature < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"temperature {temperature}, limit {limit}: both are at least 1")
    counts = np.array([len(found) for found in texts.values()], dtype=np.float64)
    total = int(counts.sum()) if limit is None else min(limit, int(counts.sum()))
    weights = counts ** (1 / temperature)
    shares = total * weights / max(weights.sum(), 1e-12)
    wanted = np.floor(shares).astype(int)
    wanted[np.argsort(wanted - shares, kind="stable")[: total - int(wanted.sum())]] += 1  # the largest remainders
    for number, (found, count) in enumerate(zip(texts.values(), wanted.tolist(), strict=True)):
        whole, rest = divmod(count, len(found)) if found else (0, 0)
        for _ in range(whole):
            yield from found
        drawn = np.random.default_rng([seed, number]).permutation(len(found))[:rest]
        yield from (found[i] for i in sorted(drawn.tolist()))
