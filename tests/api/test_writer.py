"""Writing with a whole model: texts, images, or both; whatever the order and the size of batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from colours import picture
from tiny import shake, tiny_config

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.api.writer import Writer
from mmbert.errors import UsageError
from mmbert.model.modeling import MMBertForPreTraining, build_vision
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)
TEXTS = ["a red dog", "the ball", "two dogs and a cat in the snow"]


@pytest.fixture(scope="module", params=[0, 1], ids=["the trunk writes", "a decoder writes"])
def writer(request: pytest.FixtureRequest) -> Writer:
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=200)
    tokenizer.add_tokens(["[2de]", "[2en]"], special_tokens=True)
    vision: dict[str, Any] = {"kind": "grid", "backbone": "test_vit", "image_size": 64}
    config = tiny_config(
        vocab_size=len(tokenizer), vision=vision, region_feature_size=build_vision(vision).feature_size,
        num_decoder_layers=request.param, num_region_classes=0,
    )  # fmt: skip
    network = MMBertForPreTraining(config)
    shake(network, 2)
    return Writer(MMBert(network, MMBertProcessor(tokenizer, config, network.trunk.vision)))


def test_a_text_is_what_it_is_alone(writer: Writer) -> None:
    together = writer.write(TEXTS, to="de", beam=3, nbest=2, max_tokens=6)
    assert [len(found) for found in together] == [2, 2, 2]
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = writer.write([text], to="de", beam=3, nbest=2, max_tokens=6)
        assert [w.text for w in alone] == [w.text for w in found]
        assert [w.score for w in alone] == pytest.approx([w.score for w in found], abs=1e-4)
    small = writer.write(TEXTS, to="de", beam=3, nbest=2, max_tokens=6, batch_tokens=1)
    assert [[w.text for w in found] for found in small] == [[w.text for w in found] for found in together]


def test_a_wider_beam_finds_texts_no_less_likely_than_greedy_ones(writer: Writer) -> None:
    greedy = writer.write(TEXTS, to="de", beam=1, max_tokens=3)
    wide = writer.write(TEXTS, to="de", beam=8, length_penalty=0.0, max_tokens=3)
    for one, other in zip(greedy, wide, strict=True):
        assert one[0].score < 0
        assert other[0].score >= one[0].score - 1e-4


def test_language_and_image_decide_what_is_written(writer: Writer) -> None:
    red, blue = picture("red"), picture("blue")

    def scores(**given: Any) -> list[float]:
        return [found[0].score for found in writer.write(beam=1, max_tokens=4, **given)]

    assert scores(texts=TEXTS, to="de") != scores(texts=TEXTS, to="en")
    captions = scores(texts=None, images=[red, blue], to="de")
    assert captions[0] != captions[1]
    shown = scores(texts=["a red dog"] * 2, images=[red, blue], to="de")
    assert shown[0] != shown[1]
    assert scores(texts=None, images=[blue], to="de")[0] == pytest.approx(captions[1], abs=1e-4)


def test_no_special_token_is_written(writer: Writer) -> None:
    for found in writer.write(TEXTS, to="de", beam=4, nbest=4, max_tokens=5):
        assert not any("[" in w.text for w in found)


def test_mistakes_are_told(writer: Writer) -> None:
    with pytest.raises(UsageError, match="it writes: de, en"):
        writer.write(TEXTS, to="sw")
    with pytest.raises(UsageError, match="3 texts but 1 images"):
        writer.write(TEXTS, [picture("red")], to="de")
    with pytest.raises(UsageError, match="3 best of a beam of 2"):
        writer.write(TEXTS, to="de", beam=2, nbest=3)
    with pytest.raises(UsageError, match="give texts"):
        writer.write(None, to="de")
