"""Attention maps against attention computed by hand from the layer's weights; units of text in several scripts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmbert import MMBert, MMBertForPreTraining, MMBertProcessor
from mmbert.data.images import OpenedImage
from mmbert.errors import UsageError
from mmbert.explain.attention import attention_maps
from mmbert.model.configuration import MMBertConfig
from mmbert.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def model() -> MMBert:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(
        ["ein Elefant im Schnee", "un éléphant", "雪の中の象", "فيل في الثلج"] * 5, vocab_size=90
    )
    config = MMBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        visual_size=16, region_feature_size=64, coordinate_frequencies=2, num_region_classes=0, embedding_size=8,
        vision={"kind": "grid", "backbone": "test_vit", "image_size": 160},
    )  # fmt: skip
    network = MMBertForPreTraining(config)
    return MMBert(network, MMBertProcessor(tokenizer, config, network.trunk.vision))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_weights_are_softmax_of_queries_and_keys(model: MMBert, picture: Image.Image) -> None:
    maps = attention_maps(model, picture, "ein Elefant im Schnee")
    batch = model.processor(["ein Elefant im Schnee"], [OpenedImage(picture, "x")])
    with torch.no_grad():
        states = model.model(batch, output_hidden_states=True).hidden_states[0]
        layer = model.model.trunk.encoder.layers[0].attention
        query, key, _ = layer.qkv(states).split(16, dim=1)
        by_hand = [
            torch.softmax(query[:, s] @ key[:, s].T / 8**0.5, dim=1).numpy() for s in (slice(0, 8), slice(8, 16))
        ]
    regions = len(maps.boxes)
    first = len(batch.sequences[0].token_ids)
    whole = np.stack(by_hand)[:, first : first + regions, first : first + regions]
    count = len(maps.words)
    assert maps.weights[0][:, count:, count:] == pytest.approx(whole, abs=1e-5)
    assert maps.region_to_region(0, 1) == pytest.approx(whole[1], abs=1e-5)
    assert maps.raw is not None
    assert maps.raw[0] == pytest.approx(np.stack(by_hand), abs=1e-5)


def test_every_position_has_a_name(model: MMBert, picture: Image.Image) -> None:
    maps = attention_maps(model, picture, "ein فيل")
    assert maps.raw is not None
    assert len(maps.positions) == maps.raw.shape[-1] == maps.raw.shape[-2]
    assert maps.raw.sum(axis=-1) == pytest.approx(np.ones(maps.raw.shape[:3]), abs=1e-5)
    assert maps.tokens[0] == "[CLS]" and maps.tokens[-1] == "[SEP]"
    assert maps.tokens[1] == "▁"  # the mark of a word's start, a piece of its own here
    assert "".join(maps.tokens[1:-1]).replace("▁", "") == "einفيل"
    assert "▁" not in maps.tokens[-2]
    regions = len(maps.boxes)
    assert maps.positions[len(maps.tokens) :] == (
        "whole image", *(f"region {number}" for number in range(1, regions)), "[END]",
    )  # fmt: skip


def test_words_their_places_and_what_they_share_out(model: MMBert, picture: Image.Image) -> None:
    maps = attention_maps(model, picture, "un éléphant  im Schnee")
    assert maps.words == ("un", "éléphant", "im", "Schnee")
    assert [maps.caption[a:b].strip() for a, b in maps.spans] == list(maps.words)
    assert maps.weights.shape == (2, 2, 4 + len(maps.boxes), 4 + len(maps.boxes))
    sums = maps.weights.sum(axis=-1)
    assert (sums > 0.3).all()
    assert (sums <= 1 + 1e-5).all()
    assert maps.boxes[0] == pytest.approx([0, 0, 59 / 60, 39 / 40])
    assert maps.word_to_region().shape == (4, len(maps.boxes))
    assert maps.word_to_region() == pytest.approx(maps.weights.mean(axis=(0, 1))[:4, 4:])


def test_a_script_without_spaces_is_shown_piece_by_piece(model: MMBert, picture: Image.Image) -> None:
    maps = attention_maps(model, picture, "雪の中の象")
    assert len(maps.words) > 1
    assert "".join(maps.words) == "雪の中の象"


def test_match_is_the_front_doors(model: MMBert, picture: Image.Image) -> None:
    maps = attention_maps(model, picture, "فيل في الثلج")
    assert maps.match == pytest.approx(float(model.match([picture], ["فيل في الثلج"])[0, 0]), abs=1e-5)


def test_what_makes_no_sense_is_refused(model: MMBert, picture: Image.Image) -> None:
    with pytest.raises(UsageError, match="empty"):
        attention_maps(model, picture, " ")
    maps = attention_maps(model, picture, "un")
    with pytest.raises(UsageError, match="no layer 2"):
        maps.chosen(layer=2)
    with pytest.raises(UsageError, match="no head -1"):
        maps.chosen(head=-1)


def test_kept_regions_stand_for_the_image(model: MMBert, picture: Image.Image) -> None:
    """``region_vectors`` then match is match of the image, up to half precision; mixed with images too."""
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((30, 50))
    pairs = np.array([[0, 0], [1, 1], [2, 0], [0, 1]])
    texts = ["un éléphant", "雪の中の象"]
    kept = model.region_vectors([picture, other])
    assert kept[0].vectors.dtype == np.float16
    expected = model.match_pairs([picture, other, picture], texts, pairs)
    exact = model.region_vectors([picture, other], exact=True)
    assert exact[0].vectors.dtype == np.float32
    assert model.match_pairs([exact[0], exact[1], picture], texts, pairs) == pytest.approx(expected, abs=1e-5)
    found = model.match_pairs([kept[0], other, kept[0]], texts, pairs)
    assert found == pytest.approx(expected, abs=5e-3)
    assert model.match_pairs([kept[0], kept[1], picture], texts, pairs) == pytest.approx(expected, abs=5e-3)
