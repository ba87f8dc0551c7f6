"""The limit of positions: VL-BERT's rule, and what it leaves of an example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Quarters, tiny_config

from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import OpenedImage, PixelInput
from mmbert.data.records import ImageRef, Record
from mmbert.tasks import pretraining
from mmbert.tasks.base import shorten


def one_by_one(tokens: int, regions: int, limit: int) -> tuple[int, int]:
    """The rule as the originals' loop does it."""
    while tokens + regions > limit and tokens > 0 and regions > 0:
        if regions > tokens:
            regions -= 1
        else:
            tokens -= 1
    return max(tokens, 2), max(regions, 1)


@given(st.integers(2, 150), st.integers(1, 150), st.integers(3, 200))
def test_the_longer_of_the_two_gives_way_in_turn(tokens: int, regions: int, limit: int) -> None:
    assert shorten(tokens, regions, limit) == one_by_one(tokens, regions, limit)


def test_without_a_limit_or_an_image_nothing_else_is_dropped() -> None:
    assert shorten(500, 100, None) == (500, 100)
    assert shorten(10, 0, 64) == (10, 0)
    assert shorten(100, 0, 64) == (64, 0)


class Varied(PixelInput):
    """Images have as many regions as their key says."""

    def count(self, image: ImageRef | OpenedImage) -> int:
        return int(image.key)


@pytest.mark.parametrize("limit", [3, 9, 14, 64])
def test_examples_keep_to_the_limit_and_to_their_labels(processor: MMBertProcessor, limit: int) -> None:
    config = tiny_config(vocab_size=len(processor.tokenizer), max_text_tokens=32)
    processor = MMBertProcessor(processor.tokenizer, config, Quarters())
    processor.images = Varied(Quarters())
    options = pretraining.Options(max_positions=limit, word_rate=0.5, region_rate=0.5)
    task = pretraining.build(options, processor, ("mlm", "mvrc"))
    record = Record("r", ImageRef(path="x", key="11"), {"en": ("A dog runs through the snow. two children",)})
    for seed in range(8):
        (example,) = task.examples(record, np.random.default_rng(seed))
        tokens = len(example.token_ids)
        regions = 11 if example.region_numbers is None else len(example.region_numbers)
        whole = len(processor.ids("A dog runs through the snow. two children"))
        assert (tokens, regions) == one_by_one(whole, 11, limit)
        assert example.token_ids[-1] == processor.tokenizer.sep_token_id
        assert tokens + regions + 1 <= task.cost(record)
        if example.masked is not None:
            assert len(example.masked) == regions and not example.masked[0]
        for label in example.labels.values():
            assert len(label.places)
            assert label.places.max() < (tokens - 1 if label.scope == "token" else regions)
