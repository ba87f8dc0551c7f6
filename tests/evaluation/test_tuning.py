"""The weights of match logit and hubness: chosen on validation records, against lists sorted by hand and evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from colours import ColourModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_model import RandomModel, random_records

from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError
from mmbert.evaluation.retrieval import evaluate_retrieval
from mmbert.evaluation.tuning import HUB_WEIGHTS, MATCH_WEIGHTS, Weights, best_rerank_weights

SEEDS = st.integers(0, 10_000)


def share_found(model: RandomModel, records: list[Record], weights: Weights, rerank: int) -> float:
    """Share of captions whose own image comes first, one caption after the other (each record has its own image)."""
    images = [record.image for record in records]
    places = dict(zip([image.key for image in images], model.encode_images(images), strict=True))
    careful = dict(zip(places, model.encode_images(images, views=2), strict=True))
    queries = {(lang, r.image.key, text) for r in records for lang, texts in r.captions.items() for text in texts}
    right = 0
    for _, own, text in queries:
        cosine = {key: float(model.encode_text([text])[0] @ place) for key, place in places.items()}
        nearest = sorted(cosine, key=lambda key: -cosine[key])[:rerank]
        joint = {
            key: float(model.encode_text([text])[0] @ careful[key]) * model.logit_scale
            + weights.match * model.logit(key, text)
            - weights.hub * 5 * abs(float(careful[key][0]))
            for key in nearest
        }
        first = max(nearest, key=joint.__getitem__)
        right += first == own
    return right / len(queries)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(2, 9), rerank=st.integers(1, 7))
def test_figures_and_choice_are_those_of_lists_sorted_by_hand(seed: int, count: int, rerank: int) -> None:
    model = RandomModel(seed)
    records = [
        replace(record, image=ImageRef(data=b"unread", key=f"image {i}"), group=f"group {i}")
        for i, record in enumerate(random_records(seed, count))
    ]
    assume(any(texts for record in records for texts in record.captions.values()))
    pairs = [Weights(match, hub) for match in MATCH_WEIGHTS for hub in HUB_WEIGHTS]
    expected = {weights: share_found(model, records, weights, rerank) for weights in pairs}
    weights, found = best_rerank_weights(model, records, rerank=rerank)
    assert found == pytest.approx(expected)
    assert weights == min(w for w, share in expected.items() if share == max(expected.values()))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, count=st.integers(2, 12), rerank=st.integers(1, 7))
def test_figures_are_those_that_evaluation_gives_with_each_weight(seed: int, count: int, rerank: int) -> None:
    """With images and groups that records share; one language, since evaluation takes the mean over languages."""
    model = RandomModel(seed)
    records = [replace(r, captions={"en": r.captions["en"]}) for r in random_records(seed, count)]
    assume(any(record.captions["en"] for record in records))
    _, found = best_rerank_weights(model, records, rerank=rerank)
    for (model.rerank_weight, model.hub_weight), share in found.items():
        report = evaluate_retrieval(model, records, mode="rerank", rerank=rerank)
        assert report["text_to_image"]["en"]["R@1"] == pytest.approx(share)


def test_the_smallest_weight_that_repairs_everything_is_chosen(model: ColourModel, shades: list[Record]) -> None:
    model.logit_scale, model.rerank_weight = 1.0, 7.0
    weights, found = best_rerank_weights(model, shades)
    assert list(found) == [(match, 0.0) for match in MATCH_WEIGHTS], "without a query bank there is no hubness to weigh"
    assert found[Weights(0.0, 0.0)] <= 0.5, "the cosine cannot tell dark colours from plain ones"
    assert found[weights] == found[Weights(MATCH_WEIGHTS[-1], 0.0)] == 1.0
    assert 0 < weights.match == min(w.match for w, share in found.items() if share == 1.0)
    assert model.rerank_weight == 7.0, "choosing changes nothing"


def test_a_match_that_only_does_harm_gets_no_weight(records: list[Record]) -> None:
    class Contrary(ColourModel):
        def match_pairs(self, *args: object, **kwargs: object) -> object:
            return -super().match_pairs(*args, **kwargs)

    weights, found = best_rerank_weights(Contrary(), records)
    assert weights == Weights(0.0, 0.0)
    assert found[weights] == 1.0
    assert found[Weights(MATCH_WEIGHTS[-1], 0.0)] < 1.0


def test_only_so_many_queries_are_drawn_and_the_seed_decides_which(shades: list[Record]) -> None:
    def asked(**options: int) -> list[str]:
        model = ColourModel()
        best_rerank_weights(model, shades, rerank=3, **options)
        assert model.pairs_matched == 3 * len(model.texts_encoded)
        return model.texts_encoded

    assert len(asked(most=5)) == 5
    assert asked(most=5) == asked(most=5)
    assert set(asked(most=5)) != set(asked(most=5, seed=1))
    assert len(asked()) == 4 * len(shades)


def test_records_without_images_or_captions_are_left_out(model: ColourModel, records: list[Record]) -> None:
    others = [Record(id="text", captions={"en": ("grey",)}), replace(records[0], id="silent", captions={})]
    assert best_rerank_weights(model, [*records, *others]) == best_rerank_weights(model, records)
    with pytest.raises(DataError, match="no record has an image and a caption"):
        best_rerank_weights(model, others)
