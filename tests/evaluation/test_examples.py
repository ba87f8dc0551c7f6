"""Examples for whoever watches a run: the table is text and nothing else, frames say what is right."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import numpy as np
import pytest
from colours import ColourModel
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown

from mmbert.data.records import ImageRef, Record
from mmbert.evaluation.examples import FRAME, GAP, LINE, RIGHT, SIDE, WRONG, Examples, gallery_picture, spread
from mmbert.evaluation.measures import retrieval
from mmbert.evaluation.retrieval import Answer, Found, Retrieval


@given(st.integers(0, 500), st.integers(1, 20))
def test_examples_are_spread_evenly(count: int, most: int) -> None:
    chosen = spread(count, most)
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    assert all(0 <= number < count for number in chosen)
    assert all(int(number * len(chosen) / count) in (i, i - 1) for i, number in enumerate(chosen)), "one of each part"


@pytest.mark.parametrize(
    "text", ["a|b", "*bold* _it_ `code`", "<b>x</b> & y", "# no title", "two\nlines", "[a](b)", "غامق"]
)
def test_texts_stay_texts_in_the_table(text: str) -> None:
    """As the Markdown package reads it, by which TensorBoard shows texts."""
    shown = markdown(Examples(("read", "written"), [(text, "x")]).as_markdown(), extensions=["tables"])
    cells = shown.partition("<tbody>")[2].replace("\n", "").split("<td>")
    assert len(cells) == 3
    assert unescape(cells[1].partition("</td>")[0]) == " ".join(text.split())


def test_queries_of_all_languages_are_shown_with_their_five_best(model: ColourModel, shades: list[Record]) -> None:
    measured = retrieval.measure(model, shades, retrieval.Options())  # type: ignore[arg-type]
    assert measured.show is not None
    found = measured.show()
    assert {row[1] for row in found.rows} == {"en", "de", "fr", "ar"}
    assert len(found.rows) == 8
    answers = Retrieval(model, shades)  # type: ignore[arg-type]
    for row in found.rows:
        place = answers.gallery.texts.index(row[2])
        again = answers.answer(place, 5)
        assert row[5] == str(again.rank)
        assert row[4] == answers.gallery.names[int(answers.gallery.image_group[again.found[0].image])]
    picture = found.pictures["text_to_image"]
    assert picture.size == (GAP + 5 * (SIDE + 2 * FRAME + GAP), GAP + 8 * (2 * LINE + SIDE + 2 * FRAME + GAP))


def test_the_right_image_is_framed_green_and_wrong_ones_red(shades: list[Record], tmp_path: Path) -> None:
    images = [record.image for record in shades if record.image is not None][:3]
    images.append(ImageRef(path=str(tmp_path / "gone.png")))
    tiles = tuple(Found(i, 0.5, None, right=i == 1) for i in range(4))
    answers = [Answer("غامق " * 40, "ar", None, tiles, 2), Answer("red", "en", None, tiles[:2], 2)]
    pixels = np.asarray(gallery_picture(answers, images))
    step, row = SIDE + 2 * FRAME + GAP, 2 * LINE + SIDE + 2 * FRAME + GAP
    for number, answer in enumerate(answers):
        for place, one in enumerate(answer.found):
            top, left = GAP + number * row + LINE + 2, GAP + place * step + 2
            assert tuple(pixels[top, left]) == (RIGHT if one.right else WRONG), (number, place)
    assert (pixels[GAP + row + LINE, GAP + 3 * step] == 255).all(), "the second query has two images"
