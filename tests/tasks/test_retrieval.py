"""Retrieval examples: texts and the image of a record, each alone, under the record's group."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example
from mmbert.data.records import ImageRef, Record
from mmbert.tasks import retrieval
from mmbert.tasks.base import group_number

CAPTIONS = {"en": ("a dog", "the dog"), "zh": ("一只狗",), "de": ("ein Hund",), "th": ("สุนัข",)}
RECORD = Record(
    "r", ImageRef(path="a.png"), CAPTIONS, {"en": ("animal", "winter", "snow"), "zh": ("球",)}, group="dogs"
)


def examples(
    processor: MMBertProcessor,
    seed: int = 0,
    record: Record = RECORD,
    objectives: tuple[str, ...] = ("itc",),
    **options: Any,
) -> list[Example]:
    task = retrieval.build(retrieval.Options(**options), processor, objectives)
    return task.examples(record, np.random.default_rng(seed))


def texts(made: list[Example]) -> list[tuple[int, ...]]:
    return [tuple(e.token_ids.tolist()) for e in made if e.image is None]


def ids(processor: MMBertProcessor, *wanted: str) -> list[tuple[int, ...]]:
    return [tuple(processor.ids(text).tolist()) for text in wanted]


def test_a_record_gives_its_texts_and_then_its_image_alone(processor: MMBertProcessor) -> None:
    made = examples(processor, texts_per_record=3)
    assert [e.image is not None for e in made] == [False, False, False, True]
    tokenizer = processor.tokenizer
    assert made[-1].token_ids.tolist() == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert made[-1].image is RECORD.image
    assert all(e.masked is None and e.ties == 0 for e in made)


def test_texts_alone_give_no_image(processor: MMBertProcessor) -> None:
    made = examples(processor, record=Record("r", None, CAPTIONS), texts_per_record=2)
    assert len(made) == 2
    assert all(e.image is None for e in made)


def test_images_can_be_left_out(processor: MMBertProcessor) -> None:
    made = examples(processor, texts_per_record=3, images=False)
    assert [e.image is None for e in made] == [True, True, True]
    with_images, without = (
        retrieval.build(retrieval.Options(images=images), processor, ("itc",)).cost(RECORD) for images in (True, False)
    )
    assert with_images - without == len(processor.image_ids()) + processor.regions_per_image + 1


@pytest.mark.parametrize("count", [1, 3, 4, 6, 9])
def test_languages_are_used_up_before_one_comes_again(processor: MMBertProcessor, count: int) -> None:
    language = {t: lang for lang, captions in CAPTIONS.items() for t in ids(processor, *captions)}
    starts = set()
    for seed in range(12):
        drawn = [language[t] for t in texts(examples(processor, seed, texts_per_record=count))]
        assert len(drawn) == count
        for start in range(0, count, 4):
            assert len(set(drawn[start : start + 4])) == min(4, count - start)
        starts.add(drawn[0])
    assert len(starts) > 1


def test_only_the_wanted_languages_are_drawn(processor: MMBertProcessor) -> None:
    drawn = {t for seed in range(30) for t in texts(examples(processor, seed, languages=["en", "zh"]))}
    assert drawn == set(ids(processor, "a dog", "the dog", "一只狗"))


def test_keywords_take_the_place_of_captions_as_often_as_asked(processor: MMBertProcessor) -> None:
    keywords = set(ids(processor, "animal", "winter", "snow", "球"))
    captions = set(ids(processor, *(c for captions in CAPTIONS.values() for c in captions)))
    drawn = [t for s in range(300) for t in texts(examples(processor, s, languages=["en", "zh"], keyword_rate=0.3))]
    assert set(drawn) <= keywords | captions
    assert np.mean([t in keywords for t in drawn]) == pytest.approx(0.3, abs=0.08)
    without = [t for s in range(30) for t in texts(examples(processor, s, languages=["de", "th"], keyword_rate=1.0))]
    assert set(without) <= captions, "languages without further texts keep their captions"


def test_lists_hold_two_to_four_different_keywords(processor: MMBertProcessor) -> None:
    words = ("dog", "ball", "red", "snow")
    lists = {
        ids(processor, ", ".join(chosen))[0]: length for length in (2, 3, 4) for chosen in permutations(words, length)
    }
    record = Record("r", None, {"en": ("a dog",)}, {"en": words})
    found = {
        text
        for seed in range(300)
        for text in texts(examples(processor, seed, record, keyword_rate=1.0, keyword_list_rate=1.0))
    }
    assert found <= lists.keys()
    assert {lists[text] for text in found} == {2, 3, 4}
    assert len(found) > 40, "the order is drawn too"


def test_labels_say_which_group_and_which_kind(processor: MMBertProcessor) -> None:
    made = examples(processor, objectives=("itc", "ttc", "proxy", "itm_hard"), texts_per_record=2)
    for example in made:
        is_image = example.image is not None
        assert set(example.labels) == {"itc", "proxy", "itm_hard"} | (set() if is_image else {"ttc"})
        for name, label in example.labels.items():
            assert label.objective == name
            assert label.scope == "sequence"
            assert label.values.tolist() == [group_number("dogs")]
            if name != "itm_hard":
                assert label.extra["is_image"].tolist() == [is_image]


def test_only_asked_objectives_get_labels(processor: MMBertProcessor) -> None:
    assert all(set(e.labels) == {"itc"} for e in examples(processor))


def test_group_numbers_are_the_same_everywhere_and_not_negative() -> None:
    assert group_number("dogs") == group_number("dogs")
    assert group_number("dogs") == 3430995743697870365  # the first 8 bytes of BLAKE2b, little end first, halved
    numbers = [group_number(str(i)) for i in range(2000)]
    assert len(set(numbers)) == 2000
    assert min(numbers) >= 0
    assert max(numbers) < 2**63
