"""Translation retrieval examples: two sentences of a record in two languages, each alone, on two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example, collate
from mmbert.data.records import ImageRef, Record
from mmbert.tasks import translation_retrieval
from mmbert.tasks.base import group_number

CAPTIONS = {"de": ("ein Hund",), "en": ("a dog", "the dog"), "th": ("สุนัข",)}
RECORD = Record("r", ImageRef(path="a.png"), CAPTIONS, group="dogs")


def task_of(processor: MMBertProcessor, **options: Any) -> translation_retrieval.TranslationRetrievalTask:
    return translation_retrieval.build(translation_retrieval.Options(**options), processor, ("ttc", "ttm_hard"))


def examples(processor: MMBertProcessor, seed: int = 0, record: Record = RECORD, **options: Any) -> list[Example]:
    return task_of(processor, **options).examples(record, np.random.default_rng(seed))


def said(processor: MMBertProcessor, example: Example) -> str:
    """Language of a sentence."""
    ids = {tuple(processor.ids(text).tolist()): code for code, texts in CAPTIONS.items() for text in texts}
    return ids[tuple(example.token_ids.tolist())]


def test_sides_follow_the_order_of_the_languages_asked_for(processor: MMBertProcessor) -> None:
    texts = set()
    for seed in range(12):
        first, second = examples(processor, seed, languages=["en", "de"])
        assert (said(processor, first), said(processor, second)) == ("en", "de")
        texts.add(tuple(first.token_ids.tolist()))
    assert len(texts) == 2, "both English captions are drawn"


def test_any_two_languages_of_a_record_are_drawn_in_its_order(processor: MMBertProcessor) -> None:
    pairs = {tuple(said(processor, e) for e in examples(processor, seed)) for seed in range(30)}
    assert pairs == {("de", "en"), ("de", "th"), ("en", "th")}


def test_labels_say_group_and_side(processor: MMBertProcessor) -> None:
    made = examples(processor)
    batch = collate(made)
    for name in ("ttc", "ttm_hard"):
        target = batch.targets[name]
        assert target.positions.tolist() == [0, 1]
        assert target.labels.tolist() == [group_number("dogs")] * 2
        assert target.extra["second"].tolist() == [False, True]
    assert all(e.image is None for e in made)


def test_images_are_read_with_each_sentence_where_asked(processor: MMBertProcessor) -> None:
    assert [e.image for e in examples(processor, images=True)] == [RECORD.image] * 2
    plain, seeing = (task_of(processor, images=images).cost(RECORD) for images in (False, True))
    assert seeing - plain == 2 * processor.regions_per_image


def test_records_in_one_of_the_languages_are_left_out(processor: MMBertProcessor) -> None:
    alone = Record("a", None, {"en": ("a dog",), "fr": ("un chien",)})
    assert task_of(processor, languages=["en", "de"]).cost(alone) == 0
    assert task_of(processor, languages=["en", "fr"]).cost(alone) > 0
    with pytest.raises(ValidationError, match="at least 2"):
        translation_retrieval.Options(languages=["en"])


def test_the_cost_is_at_least_what_is_made(processor: MMBertProcessor) -> None:
    for seed in range(10):
        made = collate(examples(processor, seed, drop_words=0.3))
        assert made.num_positions <= task_of(processor, drop_words=0.3).cost(RECORD)


def test_words_are_dropped_whole_and_a_sentence_never_vanishes(processor: MMBertProcessor) -> None:
    text = "two children with a red ball"
    whole = processor.ids(text).tolist()
    words = processor.encode(text).word_ids()
    record = Record("r", None, {"en": (text,), "de": ("ein Hund",)})
    kept = dropped = 0
    for seed in range(60):
        ids = examples(processor, seed, record, languages=["en", "de"], drop_words=0.5)[0].token_ids.tolist()
        assert (ids[0], ids[-1]) == (whole[0], whole[-1])
        assert len(ids) > 2
        possible = [
            [token for token, word in zip(whole, words, strict=True) if word is None or word in chosen]
            for chosen in (
                {w for i, w in enumerate(sorted(set(words) - {None})) if bits >> i & 1} for bits in range(64)
            )
        ]
        assert ids in possible, "a word goes with all of its pieces"
        kept, dropped = kept + len(ids) - 2, dropped + len(whole) - len(ids)
    assert 0.3 < dropped / (kept + dropped) < 0.7
