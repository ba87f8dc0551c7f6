"""Pages: what is on them, that they need nothing else, and that a caption cannot become markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from colours import ColourModel
from pages import Page, outside_references

from mmbert.data.records import Record
from mmbert.errors import UsageError
from mmbert.evaluation.report import check_report, recall_page, retrieval_page, write_retrieval_page
from mmbert.evaluation.retrieval import Retrieval


@pytest.fixture
def page(model: ColourModel, shades: list[Record]) -> str:
    retrieval = Retrieval(model, shades, mode="rerank", rerank=4)
    return retrieval_page(retrieval, title="Colours", facts=[("Model", "colours")], per_language=12)


def test_the_page_is_whole_html_and_needs_nothing_else(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert outside_references(page) == []
    assert "prefers-color-scheme: dark" in page


def test_every_query_has_five_pictures_and_its_gloss(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.all("article", "query")) == 4 * 12
    assert len(parsed.all("img")) == 4 * 12 * 5 + 4 * 12
    asked = [(attrs["lang"], text) for attrs, text in parsed.all("h3")]
    assert ("ar", "غامق أحمر") in asked
    assert all(attrs["dir"] == "auto" for attrs, _ in parsed.all("h3"))
    glosses = [text for attrs, text in parsed.all("span") if attrs == {"lang": "en", "dir": "auto"}]
    assert len(glosses) == 3 * 12 + 12 * 5  # beside foreign queries, not English ones; what images find in English
    assert glosses[: 3 * 12].count("dark red") == 3


def test_right_pictures_are_framed_green_and_wrong_ones_red(records: list[Record]) -> None:
    class Colourblind(ColourModel):
        """Takes every text for yellow."""

        def encode_text(self, texts, **_: object):  # type: ignore[no-untyped-def]
            return super().encode_text(["yellow"] * len(texts))

    retrieval = Retrieval(Colourblind(), records, languages=["en"])
    answers = [retrieval.answer(row, 5) for row in range(6)]
    without = [answer for answer in answers if not any(found.right for found in answer.found)]
    assert len(without) == 1  # six pictures, five shown
    page = Page(retrieval_page(retrieval, shown_answers=answers))
    assert len(page.all("li", "right")) == 5
    assert len(page.all("li", "miss")) == 5 * 6 - 5
    assert "right at rank 6" in [text for _, text in page.all("span", "wrong")]


def test_every_image_has_five_captions_with_what_they_mean(model: ColourModel, records: list[Record]) -> None:
    retrieval = Retrieval(model, records, languages=["de", "en"])
    parsed = Page(retrieval_page(retrieval, per_language=6))
    right = [attrs for attrs, _ in parsed.all("li", "right") if "tile" not in (attrs["class"] or "")]
    assert len(right) == 2 * 6  # this model finds each
    assert len(parsed.all("li", "wrong")) == 2 * 6 * 4
    said = [(attrs["lang"], text) for attrs, text in parsed.all("span") if attrs.get("lang")]
    assert ("de", "rot") in said
    assert len([1 for attrs, _ in parsed.all("span", "muted") if attrs.get("lang") == "en"]) == 6 * 5  # German ones


def test_captions_cannot_become_markup(model: ColourModel, records: list[Record]) -> None:
    evil = '<script>alert("red")</script>'
    dirty = [replace(records[0], captions={"en": (evil,), "de": (evil,)}), *records[1:]]
    page = retrieval_page(Retrieval(model, dirty), title=evil, facts=[("Data", evil)], per_language=6)
    parsed = Page(page)
    assert parsed.all("script") == []
    assert evil in [text for _, text in parsed.all("h3")]


def test_the_recall_table_shows_both_reports_and_bars(model: ColourModel, shades: list[Record]) -> None:
    before = Retrieval(model, shades).report()
    after = Retrieval(model, shades, mode="rerank", rerank=4).report()
    parsed = Page(recall_page(after, before, names=("cosine", "re-ranked")))
    assert [text for _, text in parsed.all("th") if text not in ("Language", "R@1", "R@5", "R@10", "Median rank")] == [
        "mean", "ar", "de", "en", "fr", "mean", "ar", "de", "en", "fr",
    ]  # fmt: skip
    assert "cosine" in "".join(text for _, text in parsed.all("span"))
    was = [text for _, text in parsed.all("span", "was")]
    assert was[0] == f"from {100 * before['text_to_image']['mean']['R@1']:.1f}"
    bars = [attrs for attrs, _ in parsed.all("rect", "new")]
    assert len(bars) == 2 * 5 * 3
    assert bars[0]["width"] == f"{100 * after['text_to_image']['mean']['R@1']:.2f}"
    assert len(parsed.all("rect", "old")) == 2 * 5 * 3


def test_without_an_earlier_report_there_is_nothing_to_compare(model: ColourModel, records: list[Record]) -> None:
    parsed = Page(recall_page(Retrieval(model, records).report()))
    assert parsed.all("rect", "old") == []
    assert parsed.all("span", "was") == []


def test_languages_that_the_earlier_report_lacks_stand_alone(model: ColourModel, records: list[Record]) -> None:
    before = Retrieval(model, records, languages=["de"]).report()
    parsed = Page(recall_page(Retrieval(model, records, languages=["de", "fr"]).report(), before))
    assert len(parsed.all("rect", "old")) == 2 * 2 * 3  # mean and de


@pytest.mark.parametrize("report", [None, [], {}, {"text_to_image": {}}, {"text_to_image": {"mean": 1}}])
def test_something_else_than_a_report_is_refused(report: object) -> None:
    with pytest.raises(UsageError, match="not a retrieval report"):
        check_report(report)


def test_a_page_that_cannot_be_written_is_an_error(model: ColourModel, records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_retrieval_page(tmp_path / "no" / "page.html", Retrieval(model, records))
    write_retrieval_page(tmp_path / "page.html", Retrieval(model, records))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
