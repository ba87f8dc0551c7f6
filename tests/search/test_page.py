"""The page of search results: what is on it, and that nothing on it can become markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from colours import ColourModel, picture
from pages import Page, outside_references

from mmbert.search.index import Hit, SearchIndex, build_index
from mmbert.search.page import search_page


@pytest.fixture
def hits(model: ColourModel, folder: Path, out: Path) -> list[Hit]:
    build_index(model, folder, out)
    return SearchIndex.open(out, model).search("أحمر", k=4, rerank=2)


def test_every_hit_has_picture_place_scores_captions_and_file(hits: list[Hit]) -> None:
    page = search_page("أحمر", hits, facts=[("Index", "photos-index")])
    assert outside_references(page) == []
    parsed = Page(page)
    assert [text for _, text in parsed.all("span", "place")] == ["1", "2", "3", "4"]
    assert [attrs["alt"] for attrs, _ in parsed.all("img")] == [hit.captions["en"][0] for hit in hits]
    assert len(parsed.all("details")) == 4
    assert parsed.all("div", "file")[0][1] == "pictures/red.png"
    assert sum("match" in text for _, text in parsed.all("span")) == 2  # the two that were re-ranked
    arabic = [attrs["dir"] for attrs, _ in parsed.all("span") if attrs.get("lang") == "ar"]
    assert arabic == ["auto"] * 4


def test_the_query_is_shown_whatever_its_direction(hits: list[Hit]) -> None:
    ((attrs, text),) = Page(search_page("أحمر", hits)).all("h3")
    assert (attrs["dir"], text) == ("auto", "أحمر")


def test_an_image_query_is_shown_as_a_picture(hits: list[Hit]) -> None:
    parsed = Page(search_page(picture("red"), hits))
    assert len(parsed.all("img")) == 5
    assert parsed.all("h3") == []


def test_nothing_found_says_so() -> None:
    assert "Nothing found." in search_page("red", [])


def test_nothing_from_outside_becomes_markup() -> None:
    evil = '"><script>alert(1)</script>'
    hit = Hit(path=evil, id=evil, score=0.5, match=None, captions={evil: (evil, evil)}, rank=1)
    parsed = Page(search_page(evil, [hit], title=evil, facts=[(evil, evil)]))
    assert parsed.all("script") == []
    assert "cannot be opened" in [text for _, text in parsed.all("p")]
