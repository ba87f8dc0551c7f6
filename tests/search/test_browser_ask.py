"""The page's questions about one image in a real browser: describe, ask, find a part, translate; by keyboard.

Needs selenium, Chromium and its driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answered import answering_model
from browsing import BROWSER, DRIVER, browsing, complaints, serving, texts, until
from colours import ColourModel, save_picture
from grounded import grounding_model
from written import TEXTS, masked_writer, writing_model

pytest.importorskip("selenium")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from mmbert.api.writer import Writer
from mmbert.search.index import SearchIndex, build_index
from mmbert.search.service.core import Service
from mmbert.search.service.offers import Further

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DRIVER is None or BROWSER is None, reason="no Chromium here"),
]
ARABIC = "أحمر"
ANSWERING, GROUNDING = answering_model(labels=["yes", "no", ARABIC]), grounding_model()
WRITER = Writer(writing_model(seed=5))


@pytest.fixture
def index(folder: Path, out: Path) -> SearchIndex:
    build_index(ColourModel(), folder, out)
    return SearchIndex.open(out, ColourModel())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as driver:
        yield driver


def one(browser: Any, css: str) -> Any:
    return browser.find_element("css selector", css)


def focused(browser: Any) -> Any:
    return browser.switch_to.active_element


def percent(probability: float) -> str:
    return f"{100 * probability:.{0 if probability > 0.1 else 1}f} %"


def look_for(browser: Any, address: str, text: str) -> None:
    """Search, and wait for the answer."""
    browser.get(f"{address}?q={text}")
    until(lambda: "of 12 images" in texts(browser, "#status")[0] and texts(browser, ".tile .name"))


def answered(browser: Any, question: str) -> list[str]:
    """The rows of the answer to a question that is typed."""
    box = one(browser, "#question-text")
    box.clear()
    box.send_keys(question + "\n")
    return until(lambda: texts(browser, "#question li") and texts(browser, "#question li span"))


def test_a_person_asks_about_images(index: SearchIndex, folder: Path, browser: Any, tmp_path: Path) -> None:
    further = [Further(ANSWERING), Further(GROUNDING), Further(WRITER.bert)]
    with serving(Service(index, further=further)) as address:
        look_for(browser, address, "rot")
        image = folder / texts(browser, ".tile .name")[0]
        opener = one(browser, ".tile .about")
        assert opener.accessible_name == "Ask about red"
        opener.send_keys("\n")

        until(lambda: focused(browser).get_attribute("id") == "describe-language")
        focused(browser).send_keys("g")  # German
        browser.execute_script("document.querySelector('#describe button').focus()")
        focused(browser).send_keys("\n")
        ((own,),) = WRITER.write(None, [image], to="de")
        assert until(lambda: texts(browser, "#describe .said p")) == [own.text]
        assert one(browser, "#describe .said p").get_attribute("lang") == "de"

        rows = answered(browser, "what is left?")
        best = ANSWERING.answer(image, "what is left?", k=3)
        assert [row for row in rows if row] == [part for a in best for part in (a.text, percent(a.probability))]
        arabic = next(e for e in browser.find_elements("css selector", "#question li span") if e.text == ARABIC)
        assert arabic.value_of_css_property("direction") == "rtl"
        bar = one(browser, "#question li .track span").rect["width"] / one(browser, "#question li .track").rect["width"]
        assert bar == pytest.approx(best[0].probability, abs=0.02)

        one(browser, "#find-text").send_keys("\n")
        until(lambda: texts(browser, "#find .said.wrong") == ["Type what to find."])
        one(browser, "#find-text").send_keys("the red square\n")
        found = GROUNDING.ground(image, "the red square")
        parts = until(lambda: texts(browser, "#find li button"))
        assert [part.split(", ")[-1] for part in parts] == [percent(float(found.scores[i])) for i in found.order(3)]
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('#boxes .edge')].map((e) => "
            "['x', 'y', 'width', 'height'].map((name) => Number(e.getAttribute(name)))).reverse()"
        )
        for (x, y, width, height), number in zip(drawn, found.order(3), strict=True):
            assert [x, y, x + width, y + height] == pytest.approx(found.boxes[number].tolist(), abs=0.02)
        browser.execute_script("document.querySelectorAll('#find li button')[1].focus()")
        pointed = "return [...document.querySelectorAll('#boxes g')].map((g) => g.classList.contains('pointed'))"
        assert browser.execute_script(pointed) == [False, True, False]

        focused(browser).send_keys("\ue00c")  # Escape
        until(lambda: not one(browser, "#about-image").is_displayed())
        assert focused(browser) == opener

        own_image = save_picture(tmp_path / "mine.png", "dark green", (40, 20))
        one(browser, "#file").send_keys(str(own_image))
        until(lambda: one(browser, "#ask-mine").is_displayed())
        one(browser, "#ask-mine").click()
        assert texts(browser, "#find li") == []  # nothing is left of the other image
        rows = answered(browser, "is there one?")
        best = ANSWERING.answer(own_image, "is there one?", k=3)
        assert [row for row in rows if row] == [part for a in best for part in (a.text, percent(a.probability))]
        one(browser, "#about-image form button").click()

        one(browser, "#open-translate").click()
        focused(browser).send_keys("\n".join(TEXTS))
        one(browser, "#translate-form button").click()
        own_texts = [written[0].text for written in WRITER.write(TEXTS, to="de")]
        assert until(lambda: texts(browser, "#translation p")) == [text or "…" for text in own_texts]
        assert complaints(browser) == []


def test_a_model_that_names_no_language_writes_the_one_that_it_knows(index: SearchIndex, browser: Any) -> None:
    writer = Writer(masked_writer(seed=5))
    with serving(Service(index, further=[Further(writer.bert)])) as address:
        look_for(browser, address, "rot")
        one(browser, "#open-translate").click()
        assert texts(browser, "#translate-language option") == ["the model’s language"]
        focused(browser).send_keys(TEXTS[0])
        one(browser, "#translate-form button").click()
        ((own,),) = writer.write(TEXTS[:1])
        assert until(lambda: texts(browser, "#translation p")) == [own.text or "…"]
        assert complaints(browser) == []
        browser.get("about:blank")  # else it would go on asking a service that has ended


def test_what_no_model_can_is_not_shown(index: SearchIndex, browser: Any) -> None:
    with serving(Service(index)) as address:
        look_for(browser, address, "rot")
        for css in (".tile .about", ".tile .inside", "#open-translate", "#ask-mine"):
            assert not one(browser, css).is_displayed()
        browser.get("about:blank")  # else it would go on asking a service that has ended
    with serving(Service(index, further=[Further(ANSWERING)])) as address:
        look_for(browser, address, "rot")
        one(browser, ".tile .about").click()
        until(lambda: focused(browser).get_attribute("id") == "question-text")
        assert [one(browser, f"#{name}").is_displayed() for name in ("describe", "question", "find")] == [
            False, True, False,
        ]  # fmt: skip
        assert not one(browser, "#open-translate").is_displayed()
        assert complaints(browser) == []
