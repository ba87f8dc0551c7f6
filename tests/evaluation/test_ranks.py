"""recall_report against a tiny case worked out by hand and against a computation written differently."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.errors import DataError, UsageError
from mmbert.evaluation.ranks import ranks, ranks_by_block
from mmbert.evaluation.retrieval import recall_report


def test_a_case_worked_out_by_hand() -> None:
    # Images: cat, dog, cow. Texts: "cat" (rank 1), "dog" (2: cow is ahead), "Katze" (3), "Kuh" (1).
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.5, 0.6], [0.1, 0.4, 0.2], [0.0, 0.1, 0.7]])
    report = recall_report(scores, ["cat", "dog", "cat", "cow"], ["cat", "dog", "cow"], ["en", "en", "de", "de"])

    assert report == {
        "text_to_image": {
            "mean": {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "median_rank": 1.75},
            "en": {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "median_rank": 1.5},
            "de": {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "median_rank": 2.0},
        },
        # en: the cat finds "cat", the dog "dog"; the cow has no English text and is no query.
        # de: the cat finds "Katze" (.1 against .0), the cow "Kuh"; the dog has no German text.
        "image_to_text": {
            "mean": {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "median_rank": 1.0},
            "en": {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "median_rank": 1.0},
            "de": {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "median_rank": 1.0},
        },
    }


def test_mean_comes_first_and_languages_in_alphabetical_order() -> None:
    report = recall_report(np.eye(3), [0, 1, 2], [0, 1, 2], ["fr", "ar", "de"])
    assert list(report["text_to_image"]) == ["mean", "ar", "de", "fr"]


def test_a_model_that_scores_everything_alike_comes_out_last() -> None:
    n = 20
    report = recall_report(np.zeros((n, n)), range(n), range(n), ["en"] * n)
    for direction in report.values():
        assert direction["mean"] == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "median_rank": float(n)}


def test_equal_right_answers_do_not_push_each_other_back() -> None:
    assert ranks(np.array([[0.5, 0.5, 0.1]]), np.array([7]), np.array([7, 7, 8])).tolist() == [1]


def test_a_score_that_is_not_a_number_is_an_error_and_not_a_first_rank() -> None:
    scores = np.array([[np.nan, 0.1], [0.2, 0.3]])
    with pytest.raises(DataError, match="not numbers"):
        recall_report(scores, [0, 1], [0, 1], ["en", "en"])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        recall_report(np.zeros((2, 3)), [0, 1, 2], [0, 1], ["en"] * 3)
    with pytest.raises(UsageError, match="do not fit"):
        recall_report(np.zeros((2, 3)), [0, 1], [0, 1, 2], ["en"])


def test_nothing_that_belongs_together_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        recall_report(np.zeros((1, 1)), ["a"], ["b"], ["en"])
    with pytest.raises(DataError, match="nothing to evaluate"):
        recall_report(np.zeros((0, 0)), [], [], [])


def by_sorting(scores: list[float], right: list[bool]) -> int | None:
    """Rank by sorting, wrong before right among equals: the definition, not the counting that the code does."""
    order = sorted(zip(scores, right, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return next((place for place, (_, is_right) in enumerate(order, 1) if is_right), None)


def brute_force(scores, text_group, image_group, text_language):  # type: ignore[no-untyped-def]
    found = {}
    for direction in ("text_to_image", "image_to_text"):
        table = {}
        for language in set(text_language):
            texts = [i for i, name in enumerate(text_language) if name == language]
            if direction == "text_to_image":
                queries = [by_sorting(scores[t], [group == text_group[t] for group in image_group]) for t in texts]
            else:
                queries = [
                    by_sorting([scores[t][i] for t in texts], [text_group[t] == group for t in texts])
                    for i, group in enumerate(image_group)
                ]
            answered = [rank for rank in queries if rank is not None]
            if answered:
                table[language] = {f"R@{k}": sum(r <= k for r in answered) / len(answered) for k in (1, 5, 10)}
                table[language]["median_rank"] = statistics.median(answered)
        if not table:
            return None
        keys = ("R@1", "R@5", "R@10", "median_rank")
        table["mean"] = {key: statistics.fmean(values[key] for values in table.values()) for key in keys}
        found[direction] = table
    return found


@st.composite
def cases(draw):  # type: ignore[no-untyped-def]
    texts, images = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    group = st.integers(0, draw(st.integers(0, 6)))  # few groups: several captions and several right images
    level = st.integers(0, 4).map(lambda x: x / 4)  # few levels: many ties
    scores = draw(st.lists(st.lists(level, min_size=images, max_size=images), min_size=texts, max_size=texts))
    return (
        scores,
        draw(st.lists(group, min_size=texts, max_size=texts)),
        draw(st.lists(group, min_size=images, max_size=images)),
        draw(st.lists(st.sampled_from(["en", "de", "und"]), min_size=texts, max_size=texts)),
    )


@settings(max_examples=300, deadline=None)
@given(cases())
def test_agrees_with_plain_loops_on_ties_groups_and_several_captions(case) -> None:  # type: ignore[no-untyped-def]
    scores, text_group, image_group, language = case
    expected = brute_force(scores, text_group, image_group, language)
    if expected is None:
        with pytest.raises(DataError):
            recall_report(np.array(scores), text_group, image_group, language)
        return
    report = recall_report(np.array(scores), text_group, image_group, language)
    assert report.keys() == expected.keys()
    for direction, table in expected.items():
        assert report[direction].keys() == table.keys()
        for name, values in table.items():
            assert report[direction][name] == pytest.approx(values)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_ranks_do_not_depend_on_the_size_of_the_blocks(queries: int, items: int, elements: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, (queries, items)) / 4
    asked, shown = random.integers(0, 5, queries), random.integers(0, 5, items)

    widest = 0

    def block(start: int, stop: int) -> np.ndarray:
        nonlocal widest
        widest = max(widest, (stop - start) * items)
        return scores[start:stop]

    found = ranks_by_block(block, asked, shown, elements=elements)
    assert found.tolist() == ranks(scores, asked, shown).tolist()
    assert widest <= max(elements, items)
