"""Vectors of sentences and match logits of pairs of them, against each encoded by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SENTENCES, Quarters, shake, tiny_config, tiny_network

from mmbert.api.first_states import comparable
from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.api.text_pairs import encode_sentences, match_sentences
from mmbert.data.images import OpenedImage
from mmbert.data.packing import Example, collate
from mmbert.errors import DataError, UsageError
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(SENTENCES * 3, vocab_size=300)
FIRST, SECOND = ["a dog", "ein Elefant", "un éléphant dans la neige"], ["狗", "a dog and two children", "كلب", "a dog"]
PICTURES = [Image.new("RGB", (12, 9), (90 * i, 40, 200 - 60 * i)) for i in range(3)]


def model_of(**changes: object) -> MMBert:
    network = tiny_network(3, vocab_size=len(TOKENIZER), **changes)
    return MMBert(network, MMBertProcessor(TOKENIZER, network.config))


def seeing(**changes: object) -> MMBert:
    """A model that reads images: the whole and its quarters, by colour."""
    config = tiny_config(vocab_size=len(TOKENIZER), region_feature_size=3, **changes)
    network = MMBertForPreTraining(config)
    network.trunk.vision = Quarters()
    shake(network, 5)
    return MMBert(network.eval(), MMBertProcessor(TOKENIZER, config, network.trunk.vision))


def opened(number: int) -> OpenedImage:
    return OpenedImage(PICTURES[number], f"#{number}")


def pair_logit(bert: MMBert, first: str, second: str, image: int | None = None) -> float:
    """``[CLS] first [SEP] second [SEP]`` as the tokenizer itself writes pairs, with or without an image."""
    ids = bert.processor.ids(first).tolist() + bert.processor.ids(second).tolist()[1:]
    example = Example(np.array(ids), image=None if image is None else opened(image))
    with torch.no_grad():
        batch = collate([example], bert.processor.images)
        return float(bert.model.match_logits(bert.model(batch).pooled))


@pytest.mark.parametrize("batch_tokens", [1, 8192])
@pytest.mark.parametrize("pooling", ["first", "product"])
def test_pairs_are_read_together(pooling: str, batch_tokens: int) -> None:
    bert = model_of(pooling=pooling)
    pairs = np.array([(a, b) for a in (2, 0, 1) for b in (3, 0, 1)])
    logits = match_sentences(bert, FIRST, SECOND, pairs, batch_tokens=batch_tokens)
    assert logits == pytest.approx([pair_logit(bert, FIRST[a], SECOND[b]) for a, b in pairs], abs=1e-5)
    assert len(match_sentences(bert, FIRST, SECOND, pairs[:0])) == 0


def test_pairs_are_read_with_the_image_of_their_first_sentence() -> None:
    bert = seeing()
    pairs = np.array([(0, 1), (2, 2), (1, 0)])
    logits = match_sentences(bert, FIRST, SECOND, pairs, PICTURES)
    assert logits == pytest.approx([pair_logit(bert, FIRST[a], SECOND[b], a) for a, b in pairs], abs=1e-4)
    assert not np.allclose(logits, match_sentences(bert, FIRST, SECOND, pairs))


def test_sentences_are_encoded_alone_or_with_their_images() -> None:
    bert = seeing()
    np.testing.assert_array_equal(encode_sentences(bert, FIRST), bert.encode_text(FIRST))
    together = encode_sentences(bert, FIRST, PICTURES)
    for i, text in enumerate(FIRST):
        with torch.no_grad():
            batch = collate([Example(bert.processor.ids(text), image=opened(i))], bert.processor.images)
            alone = bert.model.embedding_head.embed_text(bert.model(batch).last_hidden_state[:1])
        np.testing.assert_allclose(together[i], alone[0].numpy(), atol=1e-5)


def test_a_model_without_embeddings_compares_by_its_first_states() -> None:
    bert = model_of(embedding_size=0)
    with pytest.raises(UsageError, match="no embeddings"):
        encode_sentences(bert, FIRST)
    vectors = encode_sentences(comparable(bert), FIRST)
    states = bert.first_states(FIRST).astype(np.float64)
    np.testing.assert_allclose(vectors, states / np.linalg.norm(states, axis=1, keepdims=True), atol=1e-6)
    assert comparable(bert).embedding_size == 16
    with_head = model_of()
    assert comparable(with_head) is with_head


def test_what_cannot_be_read_is_told() -> None:
    pairs = np.array([(0, 0)])
    with pytest.raises(UsageError, match="does not judge pairs"):
        match_sentences(model_of(match_outputs=0), FIRST, SECOND, pairs)
    with pytest.raises(UsageError, match="3 texts but 2 images"):
        match_sentences(seeing(), FIRST, SECOND, pairs, PICTURES[:2])
    with pytest.raises(UsageError, match="3 texts but 2 images"):
        encode_sentences(seeing(), FIRST, PICTURES[:2])
    with pytest.raises(UsageError, match="no vision encoder"):
        encode_sentences(model_of(), FIRST, PICTURES)


def test_a_pair_has_to_fit_into_the_table_of_positions() -> None:
    long = "a dog and two children with a red ball in the deep snow"
    whole = len(model_of().processor.ids(long)) * 2 - 1
    fits = model_of(max_position_embeddings=whole + 2)
    assert len(match_sentences(fits, [long], [long], np.array([(0, 0)]))) == 1
    with pytest.raises(DataError, match=f"takes {whole + 2} positions, and the model has {whole + 1}"):
        match_sentences(model_of(max_position_embeddings=whole + 1), [long], [long], np.array([(0, 0)]))
