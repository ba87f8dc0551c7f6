"""Writing with a whole model: texts, images, or both; whatever the order and the size of batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from colours import picture
from written import TEXTS, masked_writer, writing_model

from mmbert.api import writer as writer_module
from mmbert.api.writer import Writer
from mmbert.data.images import OpenedImage
from mmbert.data.packing import Example, collate
from mmbert.errors import UsageError
from mmbert.model.masked_generation import Generated, generate_at_mask
from mmbert.tasks import translation

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


@pytest.fixture(scope="module")
def at_mask() -> Writer:
    return Writer(masked_writer())


def test_at_mask_a_text_is_what_it_is_alone(at_mask: Writer) -> None:
    images = [picture("red"), picture("blue"), picture("green")]
    together = at_mask.write(TEXTS, images, max_tokens=6)
    for text, image, (found,) in zip(TEXTS, images, together, strict=True):
        ((alone,),) = at_mask.write([text], [image], max_tokens=6)
        assert alone.text == found.text
        assert alone.score == pytest.approx(found.score, abs=1e-4)
        assert found.score < 0


def test_at_mask_each_piece_is_the_likeliest_behind_what_training_reads(
    at_mask: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are those of the task's example for what was written; the score is the sum of what is said at their masks."""
    bert, ids = at_mask.bert, at_mask.tokenizer.get_vocab()
    task = translation.build(translation.Options(), bert.processor, ("mlm",))
    generated: list[Generated] = []

    def spied(*given: Any, **options: Any) -> Generated:
        generated.append(generate_at_mask(*given, **options))
        return generated[-1]

    monkeypatch.setattr(writer_module, "generate_at_mask", spied)
    for text in TEXTS:
        ((found,),) = at_mask.write([text], max_tokens=5)
        (pieces,) = generated[-1].tokens()
        rows = list(task._prefixes(bert.processor.ids(text), np.array(pieces)))[: generated[-1].ids.shape[1]]
        batch = collate([Example(row) for row, _ in rows])
        places = batch.starts + torch.tensor([int(label.places[0]) for _, label in rows])
        with torch.no_grad():
            said = bert.model.token_logits(bert.model.trunk(batch, positions=places).last_hidden_state).log_softmax(-1)
        assert said.argmax(-1).tolist() == [*pieces, ids["[STOP]"]][: len(rows)]
        assert found.score == pytest.approx(float(said.max(-1).values.sum()), abs=1e-4)
        assert found.text == at_mask.tokenizer.decode(pieces, skip_special_tokens=True).strip()


def test_at_mask_only_greedy_texts_are_written_in_the_one_language(at_mask: Writer) -> None:
    (found,) = at_mask.write(TEXTS[:1], max_tokens=4)
    assert at_mask.write(TEXTS[:1], to="de", beam=1, max_tokens=4) == [found]
    assert at_mask.write(None, [picture("red")], max_tokens=4) != at_mask.write(None, [picture("blue")], max_tokens=4)
    for options in ({"beam": 2}, {"nbest": 2}, {"beam": 4, "nbest": 2}):
        with pytest.raises(UsageError, match="greedily") as caught:
            at_mask.write(TEXTS, **options)
        assert caught.value.hint == "leave beam and nbest out, or ask for 1"


def test_at_mask_no_more_is_written_than_there_are_positions() -> None:
    longest = len(masked_writer().processor.ids(TEXTS[2]))
    for room in (1, 8):
        narrow = Writer(masked_writer(positions=longest + 3 + room))
        assert len(narrow.write([TEXTS[2], TEXTS[0]], [picture("red"), picture("blue")])) == 2
    with pytest.raises(UsageError, match=f"{longest} pieces leaves no room"):
        Writer(masked_writer(positions=longest + 3)).write([TEXTS[0], TEXTS[2]])


@pytest.mark.parametrize("penalty", [math.nan, math.inf, -math.inf, 1000.0, -10.1])
def test_a_length_penalty_is_a_number_of_a_sensible_size(writer: Writer, at_mask: Writer, penalty: float) -> None:
    for each in (writer, at_mask):
        with pytest.raises(UsageError, match="length penalty") as caught:
            each.write(TEXTS, to="de", length_penalty=penalty, max_tokens=2)
        assert "-10 to 10" in str(caught.value.hint)


def test_the_greatest_penalties_give_scores(writer: Writer) -> None:
    for penalty in (-10.0, 10.0):
        assert all(math.isfinite(w.score) for (w,) in writer.write(TEXTS, to="de", length_penalty=penalty))


def test_the_language_is_said_where_there_are_several(writer: Writer) -> None:
    with pytest.raises(UsageError, match="not said") as caught:
        writer.write(TEXTS)
    assert caught.value.hint == "it writes: de, en"


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
