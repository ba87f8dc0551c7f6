"""``cost`` is what batches are planned by: a record never makes more positions than it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example
from mmbert.data.records import ImageRef, Record
from mmbert.tasks import pretraining, retrieval
from mmbert.tasks.base import Task

WORDS = (
    "dog snow Hund Schnee Donaudampfschifffahrt สุนัข วิ่งอยู่บนหิมะ 一只狗在雪地里奔跑 "
    "红色的球 كلب الثلج 눈 공을 ᚠ ﷽ ﬁ １２３ é 🐶 a,b ..."
).split()
SENTENCES = st.lists(st.sampled_from(WORDS) | st.text(min_size=1, max_size=6), min_size=1, max_size=8).map(" ".join)
TEXTS = st.lists(SENTENCES, min_size=1, max_size=3).map(tuple)
KEYWORDS = st.lists(SENTENCES, max_size=6).map(tuple)
LANGUAGES = st.sampled_from(["de", "en", "th", "zh"])


@st.composite
def records(draw: st.DrawFn) -> Record:
    image = ImageRef(path="a.png") if draw(st.booleans()) else None
    captions = draw(st.dictionaries(LANGUAGES, TEXTS, min_size=1, max_size=3))
    return Record("r", image, captions, {k: draw(KEYWORDS) for k in captions})


def positions(examples: list[Example], processor: MMBertProcessor) -> int:
    """Tokens, regions and [END] of every example."""
    regions = [0 if e.image is None else processor.regions_per_image for e in examples]
    return sum(len(e.token_ids) + r + 1 for e, r in zip(examples, regions, strict=True))


def check(task: Task, record: Record, processor: MMBertProcessor, seed: int) -> None:
    bound = task.cost(record)
    for number in range(6):
        made = positions(task.examples(record, np.random.default_rng([seed, number])), processor)
        assert made <= bound, f"{made} positions made of a record that costs {bound}: {record}"


SHARE = st.sampled_from([0.0, 0.5, 1.0])
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@SETTINGS
@given(record=records(), seed=st.integers(0, 10**6), count=st.integers(1, 5), keyword=SHARE, several=SHARE)
def test_retrieval_never_makes_more_than_it_costs(
    processor: MMBertProcessor, record: Record, seed: int, count: int, keyword: float, several: float
) -> None:
    options = retrieval.Options(texts_per_record=count, keyword_rate=keyword, keyword_list_rate=several)
    check(retrieval.build(options, processor, ("itc",)), record, processor, seed)


@SETTINGS
@given(record=records(), seed=st.integers(0, 10**6), languages=st.integers(1, 2), keywords=st.booleans())
def test_pretraining_never_makes_more_than_it_costs(
    processor: MMBertProcessor, record: Record, seed: int, languages: int, keywords: bool
) -> None:
    options = pretraining.Options(languages_per_example=languages, keywords=keywords)
    check(pretraining.build(options, processor, ("mlm", "mvfr")), record, processor, seed)


CAPTION = "两个孩子 с мячом, a dog"


@pytest.mark.parametrize("image", [None, ImageRef(path="a.png")], ids=["text", "image"])
def test_a_record_without_choice_costs_what_it_makes(processor: MMBertProcessor, image: ImageRef | None) -> None:
    record = Record("r", image, {"und": (CAPTION,)})
    tasks: list[tuple[Any, dict[str, Any]]] = [(retrieval, {"texts_per_record": 3}), (pretraining, {})]
    for module, options in tasks:
        task = module.build(module.Options(**options), processor, ("mlm", "itc"))
        assert task.cost(record) == positions(task.examples(record, np.random.default_rng(0)), processor)


def test_a_pair_of_languages_costs_what_it_makes(processor: MMBertProcessor) -> None:
    record = Record("r", ImageRef(path="a.png"), {"de": ("Hund",), "zh": ("狗",)})
    task = pretraining.build(pretraining.Options(languages_per_example=2), processor, ("mlm",))
    assert task.cost(record) == positions(task.examples(record, np.random.default_rng(0)), processor)


@pytest.mark.parametrize("module", [retrieval, pretraining])
def test_lists_of_keywords_cost_their_longest_choice(module: Any, processor: MMBertProcessor) -> None:
    record = Record("r", None, {"en": ("a",)}, {"en": ("dog", "snow", "ball", "red dog", "a")})
    chosen = {"keyword_rate": 1.0, "keyword_list_rate": 1.0} if module is retrieval else {"keywords": True}
    task = module.build(module.Options(**chosen), processor, ("mlm", "itc"))
    made = [positions(task.examples(record, np.random.default_rng(seed)), processor) for seed in range(200)]
    assert max(made) <= task.cost(record) <= max(made) + 1  # the last item has no comma


def test_nothing_costs_more_than_the_text_limit_allows(processor: MMBertProcessor) -> None:
    record = Record("r", ImageRef(path="a.png"), {"de": ("lang " * 500,), "en": ("long " * 500,)})
    task = pretraining.build(pretraining.Options(languages_per_example=2), processor, ("mlm",))
    assert task.cost(record) == 32 + 5 + 1


def test_a_record_in_other_languages_is_left_out(processor: MMBertProcessor) -> None:
    record = Record("r", None, {"fr": ("un chien",)})
    for module in (retrieval, pretraining):
        assert module.build(module.Options(languages=["de", "en"]), processor, ()).cost(record) == 0
        assert module.build(module.Options(languages=["fr"]), processor, ()).cost(record) > 0
    assert retrieval.build(retrieval.Options(), processor, ()).cost(Record("r", ImageRef(path="a.png"))) == 0
