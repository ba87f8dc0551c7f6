"""Writing with a whole model: texts, images, or both; whatever the order and the size of batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from colours import picture
from written import TEXTS, writing_model

from mmbert.api.writer import Writer
from mmbert.data.images import OpenedImage
from mmbert.errors import UsageError

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[0, 1], ids=["the trunk writes", "a decoder writes"])
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(writing_model(decoder_layers=request.param))


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
    once = OpenedImage(blue, "blue")  # one image for several texts is looked at once
    texts = ["a red dog", "the ball"]
    again = scores(texts=texts, images=[once, once], to="de")
    assert again == pytest.approx(scores(texts=texts, images=[blue, blue], to="de"), abs=1e-4)
    assert again[0] == pytest.approx(shown[1], abs=1e-4)


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
    with pytest.raises(UsageError, match="33 pieces") as caught:
        writer.write(TEXTS, to="de", max_tokens=33)
    assert caught.value.hint == "1 to 32"
