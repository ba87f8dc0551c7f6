"""The interface of a task.

A task is one module with ``Options`` (pydantic), ``OBJECTIVES`` (names it can make labels for) and
``build(options, processor, objectives) -> Task``. It turns records into examples; everything after that is shared.
``LABELS``, where there are some, names what its labels say beside their numbers, as far as objectives ask for it
(:mod:`mmbert.training.needs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example
from mmbert.data.records import Record


class Task:
    """Records to examples."""

    def cost(self, record: Record) -> int:
        """Upper bound of the positions made of a record; 0 leaves the record out."""
        raise NotImplementedError

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        """The record as model sequences."""
        raise NotImplementedError


def group_number(group: str) -> int:
    """A 63-bit number for a group name; equal names give equal numbers on every machine."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little") >> 1


def choose_languages(record: Record, wanted: Collection[str] | None) -> list[str]:
    """Languages with a caption that are asked for (all where nothing is asked)."""
    return [language for language in record.captions if wanted is None or language in wanted]


def longest_text(
    processor: MMBertProcessor,
    captions: Sequence[str],
    further: Sequence[str] = (),
    listed: int = 0,
    behind: bool = False,
) -> int:
    """Most word pieces that a text drawn from a record's captions and further texts can have.

    Args:
        processor: has the tokenizer.
        captions: drawn alone.
        further: drawn alone too.
        listed: how many of ``further`` may be joined by ", ".
        behind: the list stands behind a caption instead of alone.
    """
    alone = processor.lengths([*captions, *further])
    if not further or not listed:
        return max(alone, default=0)
    # Words are cut into pieces one by one, so a list has as many pieces as its items with their commas.
    with_comma = processor.lengths([f"{text}," for text in (*captions, *further)])
    most = [max(pair) for pair in zip(alone, with_comma, strict=True)]
    items = sum(sorted(most[len(captions) :])[-listed:])
    return max(*alone, items + (max(most[: len(captions)], default=0) if behind else 0))


def shorten(tokens: int, regions: int, limit: int | None) -> tuple[int, int]:
    """How many tokens and regions are kept where both together are at most ``limit``.

    One is dropped from the longer of the two in turn (from the text where they are equal); at least 2 tokens and,
    where there is an image, 1 region stay: VL-BERT's rule.
    """
    if limit is None or tokens + regions <= limit:
        return tokens, regions
    if not regions:
        return max(2, limit), 0
    surplus = tokens + regions - limit
    ahead = abs(tokens - regions)  # first the longer one comes down to the other, then both in turn
    alone, both = min(surplus, ahead), max(0, surplus - ahead)
    if regions > tokens:
        regions -= alone
    else:
        tokens -= alone
    return max(2, tokens - (both + 1) // 2), max(1, regions - both // 2)


def choose(items: Sequence[str], rng: np.random.Generator) -> str:
    """One of ``items``."""
    return items[int(rng.integers(len(items)))]
