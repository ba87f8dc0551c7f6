"""evaluate_retrieval on coloured pictures: modes, languages, groups, images that cannot be opened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from colours import NAMES, ColourModel
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import RandomModel, random_records

from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.errors import DataError, ImageError, UsageError
from mmbert.evaluation import scorers
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.retrieval import Retrieval, evaluate_retrieval, recall_report
from mmbert.evaluation.scorers import top

PERFECT = {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "median_rank": 1.0}


def test_a_model_that_knows_the_colours_finds_them_all(model: ColourModel, records: list[Record]) -> None:
    report = evaluate_retrieval(model, records)
    assert list(report) == ["text_to_image", "image_to_text"]
    for direction in report.values():
        assert direction == dict.fromkeys(["mean", "ar", "de", "en", "fr"], PERFECT)


def test_each_image_and_each_distinct_text_is_encoded_once(model: ColourModel, records: list[Record]) -> None:
    doubled = records + [replace(record, id=f"{record.id} again") for record in records]  # the same images again
    evaluate_retrieval(model, doubled, languages=["en", "de"])
    assert model.images_encoded == len(records)
    assert sorted(model.texts_encoded) == sorted(names[lang] for names in NAMES.values() for lang in ("en", "de"))


@pytest.mark.parametrize("mode", ["match", "rerank"])
def test_matching_repairs_what_the_cosine_cannot_tell(model: ColourModel, shades: list[Record], mode: str) -> None:
    by_cosine = evaluate_retrieval(model, shades, languages=["de"])
    repaired = evaluate_retrieval(model, shades, languages=["de"], mode=mode, rerank=4)
    for direction in ("text_to_image", "image_to_text"):
        assert by_cosine[direction]["de"]["R@1"] < 0.6
        assert repaired[direction]["de"]["R@1"] == 1.0


def test_reranking_matches_only_the_best_of_each_query(model: ColourModel, shades: list[Record]) -> None:
    evaluate_retrieval(model, shades, languages=["en"], mode="rerank", rerank=3)
    assert model.pairs_matched <= 2 * 3 * len(shades)  # both directions; a pair that both want is matched once


def test_match_without_weight_is_computed_only_for_what_is_shown(model: ColourModel, shades: list[Record]) -> None:
    model.rerank_weight = 0.0
    retrieval = Retrieval(model, shades, languages=["en"], mode="rerank", rerank=3)
    assert retrieval.report() == evaluate_retrieval(model, shades, languages=["en"])  # the cosine alone orders
    assert model.pairs_matched == 0
    answer = next(a for a in (retrieval.answer(row, 4) for row in range(12)) if a.text == "dark red")
    assert [one.match is not None for one in answer.found] == [True, True, True, False]  # the best three were re-ranked
    shown = {retrieval.gallery.images[one.image].key: one.match for one in answer.found}
    assert shown["dark red"] == pytest.approx(1 / (1 + np.exp(-6)), abs=0.01)


def rerank_by_hand(model: RandomModel, records: list[Record], k: int) -> tuple[dict, dict]:
    """Ranked lists written down one by one: text -> image keys, (language, image) -> texts."""
    gallery = build_gallery(records)
    images = [image.key for image in gallery.images]
    text_rows = model.encode_text(gallery.texts)
    image_rows, careful = model.encode_images(gallery.images), model.encode_images(gallery.images, views=2)

    def ordered(items: list[tuple[int, float, float]]) -> list[int]:
        by_cosine = sorted(items, key=lambda item: -item[1])
        head = sorted(by_cosine[:k], key=lambda item: -item[2])
        return [item[0] for item in head + by_cosine[k:]]

    def item(number: int, text: int, image: int) -> tuple[int, float, float]:
        cosine = float(text_rows[text] @ image_rows[image])
        match, hub = model.logit(images[image], gallery.texts[text]), 5 * abs(float(careful[image][0]))
        again = float(text_rows[text] @ careful[image])
        joint = again * model.logit_scale + model.rerank_weight * match - model.hub_weight * hub
        return number, cosine, joint

    forward = {t: ordered([item(i, t, i) for i in range(len(images))]) for t in range(len(gallery.texts))}
    backward = {
        (language, i): ordered([item(t, t, i) for t in range(rows.start, rows.stop)])
        for language, rows in gallery.languages.items()
        for i in range(len(images))
    }
    return forward, backward


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 14), k=st.integers(1, 9), weight=st.sampled_from([0.7, 0.0]))
def test_reranked_order_agrees_with_lists_sorted_by_hand(seed: int, count: int, k: int, weight: float) -> None:
    model, records = RandomModel(seed), random_records(seed, count)
    model.rerank_weight = weight
    if not any(record.captions[lang] for record in records for lang in record.captions):
        return
    retrieval = Retrieval(model, records, mode="rerank", rerank=k)
    gallery = retrieval.gallery
    forward, backward = rerank_by_hand(model, records, k)
    # Equal texts of different groups tie in every score; compare them as what they say.
    for t, order in forward.items():
        scores = retrieval._scorer.texts(t, t + 1)[0]
        assert np.argsort(-scores, kind="stable").tolist() == order
    for (language, i), order in backward.items():
        rows = gallery.languages[language]
        scores = retrieval._scorer.images(i, i + 1, rows)[0]
        got = [gallery.texts[rows.start + j] for j in np.argsort(-scores, kind="stable")]
        assert got == [gallery.texts[t] for t in order]


def test_reranking_one_image_changes_nothing_without_ties() -> None:
    records = [replace(record, captions={"en": (f"text {i}",)}) for i, record in enumerate(random_records(3, 30))]
    model = RandomModel(3)
    assert evaluate_retrieval(model, records, mode="rerank", rerank=1) == evaluate_retrieval(model, records)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 12))
def test_embed_and_match_agree_with_the_report_of_the_whole_matrix(seed: int, count: int) -> None:
    model, records = RandomModel(seed), random_records(seed, count)
    if not any(record.captions[lang] for record in records for lang in record.captions):
        return
    gallery = build_gallery(records)
    languages = [gallery.language_of(row) for row in range(len(gallery.texts))]
    cosine = model.encode_text(gallery.texts) @ model.encode_images(gallery.images).T
    match = np.array([[model.logit(image.key, text) for image in gallery.images] for text in gallery.texts])
    for mode, scores in (("embed", cosine), ("match", match.astype(np.float32))):
        expected = recall_report(scores, gallery.text_group, gallery.image_group, languages)
        assert evaluate_retrieval(model, records, mode=mode) == expected  # type: ignore[arg-type]


def test_matching_in_small_lots_through_a_file_gives_the_same(
    shades: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {mode: evaluate_retrieval(ColourModel(), shades, mode=mode) for mode in ("match", "rerank")}
    monkeypatch.setattr(scorers, "PAIRS_PER_CALL", 7)
    monkeypatch.setattr(scorers, "IN_MEMORY_BYTES", 0)
    for mode, report in expected.items():
        assert evaluate_retrieval(ColourModel(), shades, mode=mode) == report


def test_records_of_one_group_are_all_right_answers(model: ColourModel, records: list[Record]) -> None:
    red, green, blue, *_ = records
    asked = replace(red, captions={"en": ("green",)})  # a red picture called green
    others = [replace(green, captions={}), blue]
    apart = evaluate_retrieval(model, [asked, *others])
    assert apart["text_to_image"]["en"]["R@1"] == 0.5
    together = evaluate_retrieval(model, [replace(asked, group="green"), *others])  # now the green one is right too
    assert together["text_to_image"]["en"]["R@1"] == 1.0


def test_one_image_in_two_records_is_one_gallery_item_of_both_groups(model: ColourModel, records: list[Record]) -> None:
    red, green, *_ = records
    rows = [replace(red, id=f"row {i}", group="", captions={"en": (text,)}) for i, text in enumerate(["red", "purple"])]
    assert [row.group for row in rows] == ["row 0", "row 1"]
    report = evaluate_retrieval(model, [*rows, green])
    assert report["text_to_image"]["en"]["R@1"] == 1.0
    assert report["image_to_text"]["en"]["median_rank"] == 1.0


def test_several_captions_are_queries_of_their_own_and_any_is_a_hit(model: ColourModel, records: list[Record]) -> None:
    red, green, *_ = records
    two = replace(red, captions={"en": ("red", "green")})  # one right, one misleading
    report = evaluate_retrieval(model, [two, replace(green, captions={"en": ("green thing",)})])
    assert report["text_to_image"]["en"]["R@1"] == pytest.approx(2 / 3)  # "green" finds the wrong picture
    assert report["image_to_text"]["en"]["R@1"] == pytest.approx(1 / 2)  # the red picture finds "red"


def test_records_without_image_are_left_out(model: ColourModel, records: list[Record]) -> None:
    report = evaluate_retrieval(model, [*records, Record(id="text", captions={"el": ("κόκκινο",)})])
    assert "el" not in report["text_to_image"]


def test_an_unknown_language_is_an_error_that_names_the_known(model: ColourModel, records: list[Record]) -> None:
    with pytest.raises(UsageError, match=r"no captions in language 'ger'.*ar, de, en, fr"):
        evaluate_retrieval(model, records, languages=["ger"])


def test_an_unknown_mode_names_the_nearest(model: ColourModel, records: list[Record]) -> None:
    with pytest.raises(UsageError, match="did you mean 'embed'"):
        evaluate_retrieval(model, records, mode="embedd")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1"):
        evaluate_retrieval(model, records, mode="rerank", rerank=0)


def test_no_captions_or_no_images_is_an_error(model: ColourModel, records: list[Record]) -> None:
    for useless in ([], [replace(records[0], captions={})], [Record(id="a", captions={"en": ("a",)})]):
        with pytest.raises(DataError, match="nothing to evaluate"):
            evaluate_retrieval(model, useless)


def test_a_damaged_image_is_an_error_that_says_which(model: ColourModel, records: list[Record]) -> None:
    broken = replace(records[0], image=ImageRef(data=b"not an image", key="broken"), origin="metadata.jsonl:1")
    with pytest.raises(ImageError, match=r"metadata.jsonl:1"):
        evaluate_retrieval(model, [broken, *records[1:]])


@pytest.mark.parametrize("mode", ["embed", "match", "rerank"])
def test_damaged_images_can_be_skipped_and_are_listed(model: ColourModel, records: list[Record], mode: str) -> None:
    broken = replace(records[0], image=ImageRef(data=b"not an image", key="broken"), origin="metadata.jsonl:1")
    bad = BadRecords(skip=True)
    report = Retrieval(model, [broken, *records[1:]], mode=mode, bad=bad).report()  # type: ignore[arg-type]
    assert [where for where, _ in bad] == ["metadata.jsonl:1"]
    assert report["text_to_image"]["en"] == PERFECT

    with pytest.raises(DataError, match="none of the images"):
        Retrieval(model, [broken], mode=mode, bad=BadRecords(skip=True))  # type: ignore[arg-type]


def test_a_model_that_gives_nan_is_an_error(records: list[Record]) -> None:
    class Diverged(ColourModel):
        def encode_images(self, images, **_: object):  # type: ignore[no-untyped-def]
            return np.full((len(images), 4), np.nan, dtype=np.float32)

    with pytest.raises(DataError, match="not numbers"):
        evaluate_retrieval(Diverged(), records)


def test_answers_carry_scores_gloss_and_what_is_right(model: ColourModel, shades: list[Record]) -> None:
    retrieval = Retrieval(model, shades, languages=["de"], mode="rerank", rerank=2)
    answer = next(a for a in (retrieval.answer(row, 4) for row in range(12)) if a.text == "dunkel rot")
    assert (answer.language, answer.gloss, answer.rank) == ("de", "dark red", 1)
    assert [found.right for found in answer.found] == [True, False, False, False]
    assert [found.match is not None for found in answer.found] == [True, True, False, False]
    assert answer.found[0].match > answer.found[1].match
    assert retrieval.gallery.images[answer.found[0].image].key == "dark red"


def test_descriptions_are_the_best_captions_of_one_language(model: ColourModel, shades: list[Record]) -> None:
    retrieval = Retrieval(model, shades, mode="match", languages=["de", "en"])
    found = retrieval.describe(0, "de", k=3)
    assert [(said.text, said.gloss, said.right) for said in found.said[:1]] == [("dunkel rot", "dark red", True)]
    assert found.rank == 1
    assert found.said[0].cosine is None
    scores = [said.match for said in found.said]
    assert scores == sorted(scores, reverse=True)
    assert retrieval.describe(0, "en", k=1).said[0].gloss is None
    rows = retrieval.sample_images(per_language=4, k=2, seed=1)
    assert rows == retrieval.sample_images(per_language=4, k=2, seed=1)
    assert [one.language for one in rows] == ["de"] * 4 + ["en"] * 4


def test_a_sample_is_the_same_every_time_and_covers_every_language(model: ColourModel, records: list[Record]) -> None:
    first = Retrieval(model, records).sample(per_language=2)
    assert first == Retrieval(model, records).sample(per_language=2)
    assert [answer.language for answer in first] == ["ar", "ar", "de", "de", "en", "en", "fr", "fr"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 60), st.integers(1, 70), st.integers(0, 10_000))
def test_top_is_a_stable_sort_cut_off(rows: int, columns: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 6, (rows, columns)).astype(np.float32)
    expected = [sorted(range(columns), key=lambda c: (-row[c], c))[:k] for row in scores]
    assert top(scores, k).tolist() == expected
