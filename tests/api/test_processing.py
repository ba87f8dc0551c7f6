"""The processor: texts and images as users have them, to packed batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from mmbert import MMBert, MMBertProcessor
from mmbert.data.records import ImageRef
from mmbert.errors import ConfigError, DataError, UsageError
from mmbert.model.packed import END, REGION, TEXT


def test_texts_alone(bert: MMBert) -> None:
    batch = bert.processor(["a dog", "ein Elefant im Schnee"])
    assert batch.num_sequences == 2
    assert set(batch.kinds.tolist()) == {TEXT, END}
    tokenizer = bert.processor.tokenizer
    expected = tokenizer("a dog")["input_ids"] + tokenizer("ein Elefant im Schnee")["input_ids"]
    assert batch.token_ids.tolist() == expected


def test_images_alone(bert: MMBert, pictures: list[Path]) -> None:
    batch = bert.processor(images=[ImageRef(path=str(p)) for p in pictures])
    assert batch.lengths == [2 + 17 + 1] * 5
    assert batch.kinds.tolist().count(REGION) == 5 * 17
    assert batch.pixels.shape == (5, 3, 64, 64)


def test_texts_with_their_images(bert: MMBert, pictures: list[Path]) -> None:
    refs = [ImageRef(path=str(pictures[i])) for i in (0, 1, 0)]
    batch = bert.processor(["a dog", "狗", "un éléphant"], refs)
    assert batch.num_sequences == 3
    assert batch.pixels.shape[0] == 2, "an image that comes twice is seen once"
    model = bert.model
    assert model.match_logits(model(batch).pooled).shape == (3,)


def test_numbers_must_agree_and_something_must_be_given(bert: MMBert, pictures: list[Path]) -> None:
    with pytest.raises(UsageError, match="2 texts but 1 images"):
        bert.processor(["a", "b"], [ImageRef(path=str(pictures[0]))])
    with pytest.raises(UsageError, match="texts, images or both"):
        bert.processor()


def test_lengths_are_those_of_the_encoded_texts(bert: MMBert) -> None:
    processor = bert.processor
    texts = ["a dog", "", "สุนัขวิ่งอยู่บนหิมะ", "a dog", "a dog " * 100]
    for text, length in zip(texts, processor.lengths(texts), strict=True):
        assert processor.sequence_length(length) == len(processor.ids(text))
    first, second = processor.lengths(["a dog", "狗"])
    assert processor.sequence_length(first, second) == len(processor.ids("a dog", "狗"))
    assert processor.lengths([]) == []


def test_lengths_are_forgotten_before_they_fill_the_memory(bert: MMBert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbert.api.processing.KEPT_LENGTHS", 3)
    processor = MMBertProcessor(bert.processor.tokenizer, bert.config)
    for _ in range(3):
        assert processor.lengths(["a dog", "狗"]) == bert.processor.lengths(["a dog", "狗"])
        assert processor.lengths(["un", "deux", "trois", "un"]) == bert.processor.lengths(["un", "deux", "trois", "un"])
    assert len(processor._lengths) <= 4


def test_a_text_model_has_no_images(bert: MMBert, pictures: list[Path]) -> None:
    processor = MMBertProcessor(bert.processor.tokenizer, tiny_config(vocab_size=200))
    assert processor.regions_per_image == 0
    assert processor.augmented_images(None) is None
    with pytest.raises(DataError, match="no vision encoder"):
        processor(images=[ImageRef(path=str(pictures[0]))])


def test_a_tokenizer_with_more_entries_than_word_rows_is_refused(bert: MMBert) -> None:
    with pytest.raises(ConfigError, match="word rows"):
        MMBertProcessor(bert.processor.tokenizer, tiny_config(vocab_size=10))


def test_image_sequences_are_cls_and_sep(bert: MMBert) -> None:
    tokenizer = bert.processor.tokenizer
    np.testing.assert_array_equal(bert.processor.image_ids(), [tokenizer.cls_token_id, tokenizer.sep_token_id])
