"""Searching: by text in several languages, by image, with filters and re-ranking; damaged indexes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colours import NAMES, ColourModel, picture, save_picture
from PIL import Image

import mmbert
from mmbert.errors import ImageError, IndexStoreError, UsageError
from mmbert.search import neighbours, store
from mmbert.search.index import Ask, SearchIndex, build_index
from mmbert.search.second_look import SecondLooks
from mmbert.vision.images import load_image


@pytest.fixture
def index(model: ColourModel, folder: Path, out: Path) -> SearchIndex:
    build_index(model, folder, out)
    return SearchIndex.open(out, model)


@pytest.mark.parametrize("lang", ["en", "de", "fr", "ar"])
def test_finds_the_colour_in_every_language(index: SearchIndex, lang: str) -> None:
    for colour, names in NAMES.items():
        first, second, third, *_ = index.search(names[lang])
        assert {Path(hit.path).stem for hit in (first, second)} == {colour, f"dark-{colour}"}
        assert third.score < second.score <= first.score <= 1.0 + 1e-6
        assert [first.rank, second.rank, third.rank] == [1, 2, 3]


def test_scores_are_the_cosines_of_an_exact_search(index: SearchIndex, model: ColourModel) -> None:
    hits = index.search("lila", k=100)
    rows = model.encode_images([Path(hit.path) for hit in hits])
    assert [hit.score for hit in hits] == pytest.approx((rows @ model.encode_text("lila")[0]).tolist(), abs=1e-5)
    assert len(hits) == 12


def test_a_hit_says_what_its_record_said(index: SearchIndex, folder: Path) -> None:
    hit = index.search("أحمر", where="place = 'Ulm'")[0]
    assert hit.path == str(folder / "pictures/red.png")
    assert hit.id == "pictures/red.png"
    assert hit.captions == {lang: (word,) for lang, word in NAMES["red"].items()}
    assert hit.match is None
    assert hit.extra["year"] == 2000
    assert load_image(hit.image).size == (24, 24)


def test_k_limits_what_comes_back(index: SearchIndex) -> None:
    assert [len(index.search("red", k=k)) for k in (1, 5, 12, 500)] == [1, 5, 12, 12]


def test_reranking_puts_what_the_cosine_cannot_tell_in_order(index: SearchIndex, model: ColourModel) -> None:
    for words, stem in (("dunkel rot", "dark-red"), ("rot", "red"), ("bleu foncé", "dark-blue"), ("blue", "blue")):
        first, second, *rest = index.search(words, rerank=4)
        assert Path(first.path).stem == stem
        assert first.match > 0.9 > second.match
        assert [hit.match is None for hit in rest] == [False] * 2 + [True] * 6
        assert [hit.rank for hit in (first, second, *rest)] == list(range(1, 11))


def test_reranked_order_is_that_of_the_formula(index: SearchIndex, model: ColourModel) -> None:
    plain = index.search("dunkel grün", k=12)
    hits = index.search("dunkel grün", k=12, rerank=6)
    head = plain[:6]
    logits = model.match_pairs([hit.path for hit in head], ["dunkel grün"], np.array([[i, 0] for i in range(6)]))
    joint = [
        hit.score * model.logit_scale + model.rerank_weight * logit for hit, logit in zip(head, logits, strict=True)
    ]
    expected = [head[i].path for i in sorted(range(6), key=lambda i: -joint[i])] + [hit.path for hit in plain[6:]]
    assert [hit.path for hit in hits] == expected
    assert [hit.path for hit in index.search("dunkel grün", k=2, rerank=6)] == expected[:2]


def test_an_image_finds_those_like_it(index: SearchIndex, tmp_path: Path) -> None:
    path = save_picture(tmp_path / "query.jpg", "blue", size=(50, 20))
    for query in (path, picture("blue"), np.asarray(picture("blue")), path.read_bytes()):
        assert {Path(hit.path).stem for hit in index.search(query, k=2)} == {"blue", "dark-blue"}


def test_a_filter_is_applied_before_the_nearest_are_taken(index: SearchIndex) -> None:
    hits = index.search("red", k=3, where="year >= 2004")
    assert len(hits) == 3
    assert all(hit.extra["year"] >= 2004 for hit in hits)
    assert index.count("year >= 2004 AND place = 'O''Hara'") == 2
    assert index.search("red", where="year > 3000") == []
    assert index.search("red", where="year > 3000", rerank=5) == []


@pytest.mark.parametrize("where", ["nothing = 3", "year >", "year = 'Ulm' foo", "", "year + 1"])
def test_a_filter_that_makes_no_sense_names_the_columns(index: SearchIndex, where: str) -> None:
    for ask in (lambda: index.search("red", where=where), lambda: index.count(where)):
        with pytest.raises(UsageError, match=r"cannot filter by.*year \(int64\)") as found:
            ask()
        assert "mmbert_" not in str(found.value)  # columns of ours
        assert "SELECT" not in str(found.value)


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("nothing = 3", "No field named nothing"),
        ('place = "Ulm"', 'No field named "Ulm"'),
        ("year >", "Expected: an expression, found: EOF"),
    ],
)
def test_what_is_wrong_with_a_filter_is_said_in_few_words(index: SearchIndex, where: str, wrong: str) -> None:
    with pytest.raises(UsageError) as found:
        index.count(where)
    assert found.value.message == f"cannot filter by {where!r}: {wrong}"


def test_columns_leave_out_what_is_internal(index: SearchIndex) -> None:
    assert list(index.columns) == [
        "path", "id", "split", "captions", "width", "height", "bytes", "place", "year",
    ]  # fmt: skip


def test_questions_that_make_no_sense_are_refused(index: SearchIndex, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty"):
        index.search("  ")
    with pytest.raises(UsageError, match="0 images"):
        index.search("red", k=0)
    with pytest.raises(UsageError, match="-1"):
        index.search("red", rerank=-1)
    with pytest.raises(UsageError, match="only a text"):
        index.search(picture("red"), rerank=5)
    with pytest.raises(ImageError):
        index.search(tmp_path / "missing.png")


def test_a_picture_that_is_gone_is_found_but_not_reranked(index: SearchIndex, folder: Path) -> None:
    (folder / "pictures/red.png").unlink()
    with pytest.warns(UserWarning, match=r"red.png: no such image file; not re-ranked"):
        hits = index.search("red", k=12, rerank=4)
    assert [hit.match is None for hit in hits[:5]] == [False, False, False, True, True]
    assert hits[3].path.endswith("red.png")
    assert sum(hit.match is not None for hit in hits) == 3


def test_all_pictures_gone_still_gives_the_nearest(index: SearchIndex, folder: Path) -> None:
    plain = [hit.path for hit in index.search("red")]
    for path in (folder / "pictures").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="not re-ranked"):
        assert [hit.path for hit in index.search("red", rerank=50)] == plain


# -- opening --------------------------------------------------------------------------------------------------------


def test_the_model_is_loaded_by_its_noted_name(
    model: ColourModel, index: SearchIndex, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str) -> ColourModel:
        asked.append(name)
        return model

    monkeypatch.setattr(mmbert.MMBert, "from_pretrained", staticmethod(load))
    opened = SearchIndex.open(out)
    assert asked == []  # not before it is needed
    opened.search("red")
    opened.search("blue")
    assert asked == ["colours"]

    monkeypatch.setattr(mmbert.MMBert, "from_pretrained", staticmethod(lambda name: ColourModel("trained anew")))
    with pytest.raises(IndexStoreError, match=r"made by another model \(colours\)"):
        SearchIndex.open(out).search("red")


def test_an_index_without_a_model_name_asks_for_the_model(folder: Path, out: Path) -> None:
    build_index(ColourModel(name_or_path=""), folder, out)
    with pytest.raises(UsageError, match="which model"):
        SearchIndex.open(out).search("red")


def test_search_index_is_part_of_the_front_door() -> None:
    assert mmbert.SearchIndex is SearchIndex


def test_no_index_is_an_error_and_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(IndexStoreError, match="no such index"):
        SearchIndex.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(IndexStoreError, match="is not an index"):
        SearchIndex.open(tmp_path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_index_is_an_error_that_says_what_to_do(index: SearchIndex, out: Path, model: ColourModel) -> None:
    about = out / store.ABOUT
    whole = about.read_text()
    for damaged in ("", "[]", "{}", whole[:50], json.dumps(json.loads(whole) | {"strange": 1})):
        about.write_text(damaged)
        with pytest.raises(IndexStoreError, match=r"damaged.*index again"):
            SearchIndex.open(out, model)
    about.write_text(json.dumps(json.loads(whole) | {"format": 99, "mmbert": "9.9"}))
    with pytest.raises(IndexStoreError, match=r"newer mm-bert \(9.9\)"):
        SearchIndex.open(out, model)
    about.write_text(whole)

    for data in (out / "images.lance" / "data").iterdir():
        _cut(data)
    with pytest.raises(IndexStoreError, match=r"damaged.*index again"):
        SearchIndex.open(out, model).search("red")
    with pytest.raises(IndexStoreError, match=r"damaged.*index again"):
        SearchIndex.open(out, model).search("red", where="year = 2000")

    for manifest in (out / "images.lance" / "_versions").iterdir():
        _cut(manifest)
    with pytest.raises(IndexStoreError, match=r"damaged.*index again"):
        SearchIndex.open(out, model)


def test_above_the_limit_an_index_over_the_vectors_finds_nearly_the_same(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 300)
    many = tmp_path / "many"
    many.mkdir()
    random = np.random.default_rng(0)
    for i in range(400):
        red, green, blue = (int(c) for c in random.integers(0, 256, 3))
        Image.new("RGB", (4, 4), (red, green, blue)).save(many / f"{i:03}.png")
    model = ColourModel()
    build_index(model, many, out)
    fast = SearchIndex.open(out, model)
    assert [entry.index_type for entry in fast._table.list_indices()] == ["IvfSq"]
    tuned = fast.about.neighbours
    assert tuned is not None
    assert (tuned.kind, tuned.rows, tuned.partitions) == ("sq", 400, 1)
    assert min(effort.recall for effort in tuned.efforts) >= neighbours.TARGET
    exact = SearchIndex(fast.place, fast._table, replace(fast.about, neighbours=None), model)
    for text in ("red", "grün", "bleu", "violet"):
        found = [hit.score for hit in fast.search(text, k=10)]
        assert found == pytest.approx([hit.score for hit in exact.search(text, k=10)], abs=1e-3)
    # New images are found through it, too, and it is not built anew for one of them.
    save_picture(many / "new.png", "purple")
    build_index(model, many, out)
    again = SearchIndex.open(out, model)
    assert Path(again.search("lila", k=1)[0].path).stem == "new"
    assert again.about.neighbours == tuned


# -- text with image, pages, more like this -------------------------------------------------------------------------


def test_pages_are_cuts_of_one_list(index: SearchIndex) -> None:
    whole = index.search("dunkel rot", k=12, rerank=4)
    pages = [hit for offset in (0, 5, 10) for hit in index.search("dunkel rot", k=5, rerank=4, offset=offset)]
    assert pages == whole
    assert [hit.rank for hit in pages] == list(range(1, 13))
    assert index.search("red", k=5, offset=50) == []


def test_a_text_and_an_image_together_lie_between_the_two(index: SearchIndex, model: ColourModel) -> None:
    blue = picture("blue")
    for weight in (0.0, 0.3, 1.0):
        hits = index.search("red", image=blue, image_weight=weight, k=12)
        text, image = model.encode_text("red")[0], model.encode_images(blue)[0]
        joint = (1 - weight) * text + weight * image
        rows = model.encode_images([Path(hit.path) for hit in hits])
        expected = rows @ (joint / np.linalg.norm(joint))
        assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)
    assert {Path(h.path).stem for h in index.search("red", image=blue, image_weight=1.0, k=2)} == {"blue", "dark-blue"}


def test_reranking_heeds_the_image_as_the_weight_says(index: SearchIndex, model: ColourModel) -> None:
    """At 0 the order is the text's, at 1 the image's, between the two that of the weighted sum."""
    blue = picture("blue")
    assert index.search("red", image=blue, image_weight=0.0, k=12, rerank=12) == index.search("red", k=12, rerank=12)
    plain = index.search("red", image=blue, image_weight=1.0, k=12)
    assert index.search("red", image=blue, image_weight=1.0, k=12, rerank=12) == plain
    text, image = model.encode_text("red")[0], model.encode_images(blue)[0]
    for weight in (0.3, 0.9):
        found = index.search("red", image=blue, image_weight=weight, k=12, rerank=12)
        paths = sorted(hit.path for hit in found)
        logits = model.match_pairs(paths, ["red"], np.array([[i, 0] for i in range(12)]))
        cosine = model.encode_images([Path(path) for path in paths]) @ ((1 - weight) * text + weight * image)
        joint = cosine * model.logit_scale + (1 - weight) * model.rerank_weight * logits
        scores = dict(zip(paths, joint.tolist(), strict=True))
        in_order = [scores[hit.path] for hit in found]
        assert in_order == pytest.approx(sorted(in_order, reverse=True), abs=1e-4)


def test_a_filter_of_two_conditions_is_refused(index: SearchIndex) -> None:
    for where in ("year > 2000; year > 9999 garbage ((", "true; drop table images"):
        with pytest.raises(UsageError, match="semicolon"):
            index.search("red", where=where)
        with pytest.raises(UsageError, match="semicolon"):
            index.count(where)
    assert index.count("place = 'Ulm; or not'") == 0


def test_more_like_this_leaves_the_image_itself_out(index: SearchIndex) -> None:
    (found,) = index.search_many([Ask(like="pictures/green.png", k=3)])
    assert isinstance(found, list)
    assert Path(found[0].path).stem == "dark-green"
    assert [hit.rank for hit in found] == [1, 2, 3]
    assert "pictures/green.png" not in {hit.image.key for hit in found}


def test_questions_together_get_the_answers_they_get_alone_and_one_mistake_is_its_own(index: SearchIndex) -> None:
    asks = [
        Ask("dunkel rot", k=3, rerank=4),
        Ask("red", where="nothing = 3"),
        Ask(image=picture("blue"), k=2),
        Ask(image=b"no image"),
        Ask(like="no/such.png"),
        Ask("bleu", k=2, rerank=2, where="year >= 2002"),
        Ask("  "),
    ]
    answers = index.search_many(asks)
    kinds = [type(answer) for answer in answers]
    assert kinds == [list, UsageError, list, ImageError, UsageError, list, UsageError]
    assert answers[0] == index.search("dunkel rot", k=3, rerank=4)
    assert answers[2] == index.search(picture("blue"), k=2)
    assert answers[5] == index.search("bleu", k=2, rerank=2, where="year >= 2002")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(), "nothing is asked"),
        (Ask("a", like="b"), "goes neither"),
        (Ask("a", offset=-1), "offset -1"),
        (Ask("a", k=9000, offset=2000), "offset 2000"),
        (Ask("a", image=b"x", image_weight=1.5), "image_weight 1.5"),
    ],
)
def test_an_ask_that_makes_no_sense_is_refused(ask: Ask, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask.check()


def test_an_image_is_reached_by_its_stored_path_only(index: SearchIndex, folder: Path) -> None:
    assert load_image(index.image_of("pictures/red.png")).size == (24, 24)
    (folder / "secret.png").write_bytes(b"x")
    for key in ("secret.png", "../photos/pictures/red.png", str(folder / "pictures/red.png"), "' OR 1=1 --", ""):
        with pytest.raises(UsageError, match="no image"):
            index.image_of(key)


def test_a_column_of_the_metadata_may_have_the_name_that_lancedb_gives_answers(folder: Path, out: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"query_index": number}) + "\n" for number, row in enumerate(rows))
    (folder / "metadata.jsonl").write_text(text)
    model = ColourModel()
    build_index(model, folder, out)
    opened = SearchIndex.open(out, model)
    asks = [Ask("red", k=3), Ask("grün", k=3), Ask("bleu", k=3)]
    found = opened.search_many(asks)
    assert found == [opened.search(str(ask.text), k=3) for ask in asks]
    assert len({hit.extra["query_index"] for hits in found if isinstance(hits, list) for hit in hits}) > 3


def test_images_are_looked_at_once_for_all_queries(folder: Path, out: Path) -> None:
    model = ColourModel()
    build_index(model, folder, out)
    opened = SearchIndex.open(out, model)
    asks = [Ask("dunkel rot", k=12, rerank=4), Ask("red", k=12, rerank=4), Ask("bleu", k=12, rerank=4)]
    together = opened.search_many(asks)
    looked = model.images_looked_at
    assert 4 < looked < 12
    for ask, wanted in zip(asks, together, strict=True):
        assert isinstance(wanted, list)
        assert opened.search_many([ask]) == [wanted]
        assert SearchIndex.open(out, ColourModel()).search_many([ask]) == [wanted]
    assert model.images_looked_at == looked


def test_a_changed_image_is_looked_at_again_and_one_that_is_gone_no_more(folder: Path, out: Path) -> None:
    model = ColourModel()
    build_index(model, folder, out)
    opened = SearchIndex.open(out, model)
    (before, *_) = opened.search("red", rerank=1)
    save_picture(Path(before.path), "blue")
    (after, *_) = opened.search("red", rerank=1)
    assert before.match is not None and after.match is not None
    assert after.match < before.match
    Path(before.path).unlink()
    with pytest.warns(UserWarning, match="not re-ranked"):
        (gone, *_) = opened.search("red", rerank=1)
    assert (gone.path, gone.match) == (before.path, None)


def test_looks_take_no_more_room_than_they_may(index: SearchIndex, model: ColourModel) -> None:
    hits = index.search("red", k=12)
    one = SecondLooks()
    one.at(model, hits[:1])
    few = SecondLooks(most_bytes=3 * one.held)
    looks = few.at(model, hits)
    assert set(looks) == {hit.path for hit in hits}
    assert few.held == 3 * one.held
    looked = model.images_looked_at
    few.at(model, hits[-3:])
    assert model.images_looked_at == looked, "the last ones are kept"
    few.at(model, hits[:1])
    assert model.images_looked_at == looked + 1
    assert few.held == 3 * one.held
    few.at(model, hits[-2:])
    assert model.images_looked_at == looked + 1, "the one that was not wanted for longest went"


def test_kept_regions_rerank_without_the_images(folder: Path, out: Path) -> None:
    model = ColourModel()
    plain = out.with_name("plain")
    build_index(model, folder, plain)
    expected = SearchIndex.open(plain, model).search("dunkel rot", k=12, rerank=12)
    assert build_index(model, folder, out, keep_regions=True).added == 12
    rows = (folder / "metadata.jsonl").read_text().replace("2003", "1903")
    (folder / "metadata.jsonl").write_text(rows)
    assert build_index(model, folder, out).updated == 2  # other words: the regions stay
    for path in (folder / "pictures").iterdir():
        path.unlink()
    opened = SearchIndex.open(out, model)
    assert opened.about.regions == 1
    found = opened.search("dunkel rot", k=12, rerank=12)
    assert [(hit.path, hit.match) for hit in found] == [
        (hit.path, pytest.approx(hit.match, abs=0.05)) for hit in expected
    ]


# -- URIs -----------------------------------------------------------------------------------------------------------


def test_an_index_may_lie_behind_a_uri(model: ColourModel, folder: Path, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/far/index"
    assert build_index(model, folder, uri).added == 12
    assert build_index(model, folder, uri).unchanged == 12
    opened = SearchIndex.open(uri, model)
    assert opened.path == uri
    assert Path(opened.search("rot", k=1, rerank=4)[0].path).stem == "red"
    assert SearchIndex.open(tmp_path / "far" / "index", model).count() == 12
    with pytest.raises(IndexStoreError, match="no such index"):
        SearchIndex.open(f"file://{tmp_path}/nowhere", model)
    with pytest.raises(UsageError, match="cannot use strange://x"):
        SearchIndex.open("strange://x", model)
