"""Pre-training examples: which text is read, what is hidden, what should be predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example
from mmbert.data.records import ImageRef, Record
from mmbert.tasks import pretraining

RECORD = Record(
    "r",
    ImageRef(path="a.png"),
    {"en": ("a dog in the snow", "two children"), "zh": ("一只狗",), "de": ("ein Hund",)},
    {"en": ("animal", "winter"), "de": ("Tier",)},
)


def examples(
    processor: MMBertProcessor,
    count: int,
    record: Record = RECORD,
    objectives: tuple[str, ...] = ("mlm", "mvfr"),
    **options: Any,
) -> list[Example]:
    task = pretraining.build(pretraining.Options(**options), processor, objectives)
    made = [task.examples(record, np.random.default_rng(seed)) for seed in range(count)]
    assert all(len(m) == 1 for m in made)
    return [m[0] for m in made]


def original(example: Example) -> list[int]:
    """The ids before hiding."""
    ids = example.token_ids.copy()
    if "mlm" in example.labels:
        ids[example.labels["mlm"].places] = example.labels["mlm"].values
    return ids.tolist()


def test_each_caption_of_each_language_is_read_and_framed(processor: MMBertProcessor) -> None:
    expected = {tuple(processor.ids(t).tolist()) for texts in RECORD.captions.values() for t in texts}
    assert {tuple(original(e)) for e in examples(processor, 60)} == expected


def test_languages_are_equally_likely_however_many_captions_they_have(processor: MMBertProcessor) -> None:
    chinese = tuple(processor.ids("一只狗").tolist())
    share = np.mean([tuple(original(e)) == chinese for e in examples(processor, 300)])
    assert share == pytest.approx(1 / 3, abs=0.1)


def test_only_the_wanted_languages_are_read(processor: MMBertProcessor) -> None:
    found = {tuple(original(e)) for e in examples(processor, 30, languages=["de", "zh"])}
    assert found == {tuple(processor.ids(t).tolist()) for t in ("一只狗", "ein Hund")}


def test_two_languages_stand_in_one_sequence_in_either_order(processor: MMBertProcessor) -> None:
    record = Record("r", RECORD.image, {"zh": ("一只狗",), "de": ("ein Hund",)})
    found = examples(processor, 30, record, languages_per_example=2)
    both = {tuple(processor.ids(*pair).tolist()) for pair in (("一只狗", "ein Hund"), ("ein Hund", "一只狗"))}
    assert {tuple(original(e)) for e in found} == both
    assert all(e.segments == 0 for e in found)


def test_the_second_text_can_have_a_segment_of_its_own(processor: MMBertProcessor) -> None:
    record = Record("r", None, {"a": ("dog",), "b": ("two children",)})
    for example in examples(processor, 10, record, languages_per_example=2, second_segment=1):
        for first, second in (("dog", "two children"), ("two children", "dog")):
            if original(example) == processor.ids(first, second).tolist():
                behind = processor.lengths([second])[0] + 1  # and its [SEP]
                assert example.segments.tolist() == [0] * (len(example.token_ids) - behind) + [1] * behind
                break
        else:
            pytest.fail("neither order")


def test_one_language_is_read_alone_where_there_is_no_second(processor: MMBertProcessor) -> None:
    record = Record("r", None, {"de": ("ein Hund",)})
    found = examples(processor, 3, record, languages_per_example=2)
    assert {tuple(original(e)) for e in found} == {tuple(processor.ids("ein Hund").tolist())}


def test_words_of_the_two_texts_are_hidden_independently(processor: MMBertProcessor) -> None:
    """Word 0 of the second text is not word 0 of the first."""
    record = Record("r", None, {"a": ("dog",), "b": ("dog",)})
    only_one = 0
    for example in examples(processor, 40, record, languages_per_example=2, word_rate=0.3):
        places = example.labels["mlm"].places
        words = processor.encode("dog", "dog").sequence_ids()
        only_one += len({words[p] for p in places}) == 1
    assert only_one > 20


def test_keywords_stand_behind_the_caption_in_any_order(processor: MMBertProcessor) -> None:
    wanted = {
        tuple(processor.ids(t).tolist())
        for t in ("two children, animal, winter", "two children, winter, animal", "ein Hund, Tier", "一只狗")
    }
    found = {tuple(original(e)) for e in examples(processor, 80, keywords=True)}
    assert wanted < found
    assert len(found) == 6


def test_special_tokens_are_neither_hidden_nor_put_in(processor: MMBertProcessor) -> None:
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    put_in = []
    for example in examples(processor, 200, word_rate=0.9, languages_per_example=2):
        label = example.labels["mlm"]
        assert not special - {tokenizer.unk_token_id} & set(label.values.tolist())
        put_in += [i for i in example.token_ids[label.places].tolist() if i != tokenizer.mask_token_id]
    assert len(put_in) > 200
    assert not (special - {tokenizer.unk_token_id}) & set(put_in)


def test_random_replacements_come_from_the_whole_vocabulary(processor: MMBertProcessor) -> None:
    tokenizer = processor.tokenizer
    long = Record("r", None, {"en": ("a dog in the snow two children with a red ball",)})
    seen = {
        int(i)
        for e in examples(processor, 1500, long, word_rate=0.9)
        for i in e.token_ids[e.labels["mlm"].places]
        if i != tokenizer.mask_token_id
    }
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    assert len(seen & ordinary) > 0.75 * len(ordinary)


def test_the_whole_image_is_never_hidden_and_every_hidden_region_is_asked_for(processor: MMBertProcessor) -> None:
    drawn, hidden = np.zeros(5), np.zeros(5)
    made = examples(processor, 2000, region_rate=0.3)
    for example in made:
        places = example.labels["mvfr"].places
        assert example.labels["mvfr"].values is None
        assert len(places) > 0
        assert 0 not in places
        assert set(np.flatnonzero(example.masked)) <= set(places.tolist())
        drawn[places] += 1
        hidden += example.masked
    # each with 0.3; and where none of the four is drawn, one of them
    np.testing.assert_allclose(drawn[1:] / len(made), 0.3 + 0.7**4 / 4, atol=0.04)
    assert hidden.sum() / drawn.sum() == pytest.approx(0.9, abs=0.02)


def test_labels_are_made_for_the_asked_objectives_only(processor: MMBertProcessor) -> None:
    assert set(examples(processor, 1, objectives=("mlm",))[0].labels) == {"mlm"}
    assert examples(processor, 1, objectives=("mlm",))[0].masked is None
    only = examples(processor, 1, objectives=("mvrc",))[0]
    assert set(only.labels) == {"mvrc"}
    assert processor.tokenizer.mask_token_id not in only.token_ids
    assert set(examples(processor, 1, Record("r", None, RECORD.captions))[0].labels) == {"mlm"}


def test_text_is_tied_to_the_whole_image(processor: MMBertProcessor) -> None:
    example = examples(processor, 1)[0]
    assert example.ties == 0
    assert example.region_numbers is None
    assert example.image is RECORD.image


def test_the_generator_decides_everything(processor: MMBertProcessor) -> None:
    first, again = (examples(processor, 5) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.token_ids, b.token_ids)
        assert np.array_equal(a.masked, b.masked)


@pytest.mark.parametrize("wrong", [{"word_rate": 0.0}, {"languages_per_example": 3}, {"region_rat": 0.1}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        pretraining.Options(**wrong)
