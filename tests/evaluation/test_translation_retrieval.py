"""Translation retrieval against lists sorted by hand: modes, groups, distractors, the weights of re-ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import RandomModel

from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError, UsageError
from mmbert.evaluation import translation_retrieval as module
from mmbert.evaluation.measures import translation_retrieval as measure
from mmbert.evaluation.translation_retrieval import TranslationRetrieval, best_pair_weights, build_sides

PAIR = {"source": "en", "target": "de"}


@pytest.fixture(autouse=True)
def drawn_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Match logits by chance, the same for the same pair of sentences."""

    def match(model: RandomModel, first: list[str], second: list[str], pairs: Any, images: Any = None) -> Any:
        assert len(np.unique(pairs, axis=0)) == len(pairs), "a pair is asked for once"
        model.pairs_matched += len(pairs)
        return np.array([model.logit(first[a], second[b]) for a, b in pairs], dtype=np.float32)

    monkeypatch.setattr(module, "match_sentences", match)


def sentences(seed: int, count: int, start: int = 0) -> list[Record]:
    """Records of which some lack a language, and some say the same as others."""
    random = np.random.default_rng([seed, start])
    return [
        Record(
            f"r{start + i}",
            captions={
                code: tuple(f"{code} {start + random.integers(40)}" for _ in range(random.integers(0, 3)))
                for code in ("en", "de", "fr")
            },
            group=f"g{random.integers(max(2, count - 1))}",
        )
        for i in range(count)
    ]


def same(records: list[Record], distractors: list[Record]) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """(language, sentence) to all that say the same, by walking from sentence to record to sentence."""
    held: list[set[tuple[str, str]]] = []
    for prefix, part in (("", records), ("further ", distractors)):
        for record in part:
            said = {(code, text) for code in ("en", "de") for text in record.captions[code]}
            node = said | {("group", prefix + record.group)}
            touching = [other for other in held if other & node]
            held = [other for other in held if not other & node] + [node.union(*touching)]
    return {item: whole for whole in held for item in whole}


def ranks_by_hand(
    model: RandomModel, records: list[Record], distractors: list[Record], mode: str, k: int
) -> dict[str, list[int]]:
    """Rank of each query, from a list of all candidates sorted one by one; wrong ones first among equals."""
    together, found = same(records, distractors), {}
    for asking, answering in (("en", "de"), ("de", "en")):
        queries = list(dict.fromkeys(t for r in records for t in r.captions[asking]))
        candidates = list(dict.fromkeys(t for r in [*records, *distractors] for t in r.captions[answering]))
        found[asking] = []
        if not queries or not candidates:
            continue
        rows, vectors = model.encode_text(queries), model.encode_text(candidates)
        hubs = model.hubness(vectors)
        for query, row in zip(queries, rows, strict=True):
            right = [c for c in candidates if (answering, c) in together[asking, query]]
            if not right:
                continue
            items = []
            for candidate, vector, hub in zip(candidates, vectors, hubs, strict=True):
                pair = (query, candidate) if asking == "en" else (candidate, query)
                cosine, match = float(row @ vector), model.logit(*pair)
                joint = cosine * model.logit_scale + model.rerank_weight * match - model.hub_weight * hub
                items.append((cosine, np.float32(match), joint, candidate in right))
            by_cosine = sorted(items, key=lambda item: (-item[0], item[3]))
            if mode == "embed":
                order = by_cosine
            elif mode == "match":
                order = sorted(items, key=lambda item: (-item[1], item[3]))
            else:
                order = sorted(by_cosine[:k], key=lambda item: (-item[2], item[3])) + by_cosine[k:]
            found[asking].append(1 + next(i for i, item in enumerate(order) if item[3]))
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(3, 12), further=st.integers(0, 9), k=st.integers(1, 8),
    mode=st.sampled_from(["embed", "match", "rerank"]),
)  # fmt: skip
def test_figures_agree_with_lists_sorted_by_hand(seed: int, count: int, further: int, k: int, mode: Any) -> None:
    model, records, distractors = RandomModel(seed), sentences(seed, count), sentences(seed, further, 20)
    expected = ranks_by_hand(model, records, distractors, mode, k)
    if not expected["en"] or not expected["de"]:
        return
    report = TranslationRetrieval(model, records, **PAIR, mode=mode, rerank=k, distractors=distractors).report()  # type: ignore[arg-type]
    for asking, answering in (("en", "de"), ("de", "en")):
        ranks, figures = np.array(expected[asking]), report[f"{asking}_to_{answering}"]
        for cutoff in (1, 5, 10):
            assert figures[f"R@{cutoff}"] == pytest.approx((ranks <= cutoff).mean())
        assert figures["median_rank"] == np.median(ranks)
        assert figures["MRR"] == pytest.approx((1 / ranks).mean())
    assert report["mean"]["R@1"] == pytest.approx((report["en_to_de"]["R@1"] + report["de_to_en"]["R@1"]) / 2)


def pairs_of(count: int) -> list[Record]:
    return [Record(f"r{i}", captions={"en": (f"one {i}",), "de": (f"eins {i}",)}) for i in range(count)]


def test_distractors_are_candidates_and_not_queries() -> None:
    model = RandomModel(1)
    further = [Record("r0", captions={"en": ("other",), "de": ("anders",)}), Record("x", captions={"de": ("allein",)})]
    report = TranslationRetrieval(model, pairs_of(4), **PAIR, distractors=further).report()
    assert (report["queries"], report["candidates"]) == ([4, 4], [5, 6])
    first, second = build_sides(pairs_of(4), ("en", "de"), further)
    assert first.texts[:4] == [f"one {i}" for i in range(4)]
    assert first.group[4] not in first.group[:4], "groups of distractors are their own, whatever they are called"
    assert first.group[4] == second.group[4]


def test_a_distractor_that_says_the_same_is_right() -> None:
    further = [Record("x", captions={"en": ("one 1",), "de": ("so auch",)}), Record("y", captions={"de": ("eins 2",)})]
    _, second = build_sides(pairs_of(3), ("en", "de"), further)
    assert second.texts == ["eins 0", "eins 1", "eins 2", "so auch"]
    assert second.group[3] == second.group[1]


def test_reranking_matches_only_the_best_of_each_query() -> None:
    model = RandomModel(2)
    TranslationRetrieval(model, pairs_of(9), **PAIR, mode="rerank", rerank=3)
    assert 9 * 3 <= model.pairs_matched <= 2 * 9 * 3
    model.pairs_matched = 0
    TranslationRetrieval(model, pairs_of(9), **PAIR, mode="match")
    assert model.pairs_matched == 81, "both directions ask for the same pairs"


def test_sentences_with_images_are_apart_where_their_images_are() -> None:
    def record(name: str, image: str | None) -> Record:
        ref = None if image is None else ImageRef(data=b"unread", key=image)
        return Record(name, ref, {"en": ("a dog",), "de": (f"Hund {name}",)})

    records = [record("1", "p"), record("2", "q"), record("3", "q")]
    first, second = build_sides(records, ("en", "de"), images=True)
    assert first.texts == ["a dog", "a dog"]
    assert [image.key for image in first.images or []] == ["p", "q"]
    assert second.group.tolist() == [0, 1, 1]
    assert build_sides(records, ("en", "de"))[0].texts == ["a dog"]
    with pytest.raises(DataError, match="has no image"):
        build_sides([*records, record("4", None)], ("en", "de"), images=True)


def test_what_cannot_be_asked_is_told() -> None:
    records = pairs_of(2)
    with pytest.raises(UsageError, match=r"no sentences in language 'cs'.*there are: de, en"):
        build_sides(records, ("en", "cs"))
    with pytest.raises(UsageError, match="into itself"):
        build_sides(records, ("en", "en"))
    apart = [Record("a", captions={"en": ("a",)}), Record("b", captions={"de": ("b",)})]
    with pytest.raises(DataError, match="no record has sentences in both en and de"):
        build_sides(apart, ("en", "de"))
    with pytest.raises(UsageError, match="did you mean 'rerank'"):
        TranslationRetrieval(RandomModel(0), records, **PAIR, mode="rerankk")  # type: ignore[arg-type]


def test_the_best_weights_are_those_with_the_best_figure() -> None:
    model, records = RandomModel(4), pairs_of(12)
    found = TranslationRetrieval(model, records, **PAIR, mode="rerank", rerank=4)
    before = found.weights
    best, figures = best_pair_weights(found, hubs=True)
    assert found.weights == before
    assert len(figures) == 55
    for weights, figure in figures.items():
        model.rerank_weight, model.hub_weight = weights
        ranks = ranks_by_hand(model, records, [], "rerank", 4)
        assert figure == pytest.approx(np.mean([(1 / np.array(part)).mean() for part in ranks.values()]))
        assert figure <= figures[best]
    equals = [w for w, figure in figures.items() if figure == figures[best]]
    assert best == min(equals)
    assert len(best_pair_weights(found)[1]) == 11


def test_the_measure_gives_the_mean_of_both_directions() -> None:
    measured = measure.measure(RandomModel(5), pairs_of(7), measure.Options())  # type: ignore[arg-type]
    assert measured.figures == measured.report["mean"]
    assert measured.show is not None
    rows = measured.show().rows
    assert [row[0] for row in rows] == ["en"] * 4 + ["de"] * 4
    assert all((row[2] == row[3]) == (row[4] == "yes") for row in rows)
    assert measure.table(measured.report)[2].startswith("| en | de | 7 | ")
    assert measure.how(measure.Options(mode="match")) == "match"


def test_the_measure_re_ranks_with_the_best_weight_where_asked() -> None:
    model, records = RandomModel(6), pairs_of(12)
    model.hub_weight = 0.0
    asked = {"mode": "rerank", "rerank": 5}
    own = measure.measure(model, records, measure.Options(**asked)).figures["MRR"]  # type: ignore[arg-type]
    tuned = measure.measure(model, records, measure.Options(**asked, tune=True)).figures["MRR"]  # type: ignore[arg-type]
    found = TranslationRetrieval(model, records, **PAIR, mode="rerank", rerank=5)
    figures = best_pair_weights(found)[1]
    assert tuned == max(figures.values()) > own == found.report()["mean"]["MRR"]
