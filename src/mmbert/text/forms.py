"""Forms of a word: where in a sentence does it stand, inflected or within a compound?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

LONGEST_ENDING = 4
"""Letters in which two forms of a word may differ behind their common start."""
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@lru_cache(maxsize=100_000)
def plain(word: str) -> str:
    """Lower-case letters without accents: what forms of a word have in common (*hält*, *halten*)."""
    letters = unicodedata.normalize("NFD", word.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


@lru_cache(maxsize=200_000)
def find_form(word: str, sentence: str, *, compounds: bool = False) -> tuple[int, int] | None:
    """Where ``word`` stands in ``sentence``, in this or another form.

    The word itself comes before a form of it, which has the same start (at least three letters and half of both words)
    and another ending; among several the most alike, then the first.

    Args:
        word: one word.
        sentence: any text.
        compounds: where there is neither, take a word that holds ``word`` (*cell* in *cellphone*).

    Returns:
        First character of what was found and the one behind it; None where there is nothing.
    """
    exact, wanted = word.casefold(), plain(word)
    best, found, longer = 0.0, None, None
    for start, end in _words(sentence):
        text = sentence[start:end]
        if text.casefold() == exact:
            return start, end
        other = plain(text)
        likeness = _likeness(wanted, other)
        if likeness > best:
            best, found = likeness, (start, end)
        if compounds and longer is None and len(wanted) > 2 and wanted in other:
            longer = (start, end)
    return found or longer


def _words(sentence: str) -> Iterator[tuple[int, int]]:
    for match in _WORD.finditer(sentence):
        yield match.span()


def _likeness(word: str, other: str) -> float:
    """Share of both words that is their common start; 0 where they are no forms of one word."""
    common = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    share = 2 * common / (len(word) + len(other))
    ending = max(len(word), len(other)) - common
    is_form = share >= 0.5 and ending <= LONGEST_ENDING and (common >= 3 or common == len(word))
    return share if is_form else 0.0
