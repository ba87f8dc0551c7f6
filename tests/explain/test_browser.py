"""The head view and the model view in a real browser, offline: what is drawn, and what pointing and clicking does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("selenium")

from browsing import BROWSER, DRIVER, browsing

from mmbert.explain.attention import AttentionMaps
from mmbert.explain.page import write_explain_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DRIVER is None or BROWSER is None, reason="no Chromium here"),
]
INKED = """
const pixels = arguments[0].getContext("2d").getImageData(0, 0, arguments[0].width, arguments[0].height).data;
return pixels.filter((value, i) => i % 4 === 3 && value > 0).length;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """[CLS], two words, [SEP], the image, its four quarters, [END]; three layers of two heads.

    Everything looks at [CLS] alone, but in the last layer's second head the first word looks at the third quarter.
    """
    boxes = np.array([(0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)])
    raw = np.zeros((3, 2, 10, 10))
    raw[..., 0] = 1
    raw[2, 1, 1, 0], raw[2, 1, 1, 7] = 0.2, 0.8
    weights = np.full((3, 2, 7, 7), 0.1)
    tokens = ("[CLS]", "ein", "كلب", "[SEP]")
    maps = AttentionMaps("ein كلب", ("ein", "كلب"), ((0, 3), (4, 7)), boxes, weights, 0.5, tokens, raw)
    path = tmp_path_factory.mktemp("pages") / "look.html"
    write_explain_page(path, maps, Image.new("RGB", (80, 40), (30, 60, 200)))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing(offline=True) as driver:
        yield driver


def texts(browser: Any, css: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", css)]


def strengths(browser: Any) -> list[float]:
    boxes = browser.find_elements("css selector", "#regions rect")
    return [float(box.get_attribute("fill-opacity")) for box in boxes]


def test_the_views_are_drawn_and_answer(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    names = ["[CLS]", "ein", "كلب", "[SEP]", "whole image", *(f"region {i}" for i in range(1, 5)), "[END]"]
    assert texts(browser, "#left li") == texts(browser, "#right li") == names
    assert len(browser.find_elements("css selector", "#grid canvas")) == 6
    for canvas in browser.find_elements("css selector", "canvas"):
        assert browser.execute_script(INKED, canvas) > 50
    assert strengths(browser) == [0, 0, 0, 0]

    browser.find_elements("css selector", "#left li")[1].click()
    assert "ein\u2069 looks at \u2068[CLS]\u2069 100 %" in texts(browser, "#told")[0]

    browser.find_elements("css selector", "#grid button")[5].click()  # layer 2, head 1
    assert browser.find_element("id", "layer").get_property("value") == "2"
    heads = browser.find_elements("css selector", "#heads button")
    assert [button.get_attribute("aria-pressed") for button in heads] == ["false", "true"]
    assert "\u2068region 3\u2069 80 %, \u2068[CLS]\u2069 20 %" in texts(browser, "#told")[0]
    assert strengths(browser) == pytest.approx([0, 0, 0.75, 0])
    browser.find_element("id", "every").click()
    assert "\u2068[CLS]\u2069 60 %, \u2068region 3\u2069 40 %" in texts(browser, "#told")[0]  # the mean of both heads

    browser.execute_script("kind.value = 'words to regions'; kind.dispatchEvent(new Event('change'))")
    assert texts(browser, "#left li") == names[:4]
    assert texts(browser, "#right li") == names[4:9]
    browser.find_elements("css selector", "#right li")[3].click()
    assert "region 3\u2069 is looked at by \u2068ein\u2069 40 %" in texts(browser, "#told")[0]
    assert browser.get_log("browser") == []  # nothing was blocked, nothing failed to load


def test_a_word_is_held_from_the_keyboard(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    first, second = browser.find_elements("css selector", "#left li")[1:3]
    assert (first.aria_role, first.get_attribute("aria-pressed")) == ("button", "false")
    first.send_keys("\n")
    assert texts(browser, "#told")[0].endswith("(held)")
    assert first.get_attribute("aria-pressed") == "true"
    browser.execute_script("arguments[0].focus()", second)
    assert "ein\u2069 looks at" in texts(browser, "#told")[0]  # still
    first.send_keys(" ")
    assert not texts(browser, "#told")[0].endswith("(held)")


def test_a_tall_image_leaves_room(browser: Any, tmp_path: Path) -> None:
    boxes = np.array([(0, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1)])
    maps = AttentionMaps("dog", ("dog",), ((0, 3),), boxes, np.full((1, 1, 4, 4), 0.25), None, ("dog",), None)
    write_explain_page(tmp_path / "tall.html", maps, Image.new("RGB", (40, 400)))
    browser.get((tmp_path / "tall.html").as_uri())
    for seen in browser.find_elements("css selector", ".seen"):
        assert seen.rect["height"] == pytest.approx(260, abs=1)
        assert seen.rect["width"] == pytest.approx(26, abs=1)


@pytest.mark.parametrize("width", [380, 1100])
def test_nothing_is_wider_than_the_screen(page: Path, browser: Any, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    image = browser.find_element("id", "picture").rect
    inside = browser.find_element("css selector", "#picture img").rect
    assert inside["width"] == pytest.approx(image["width"], abs=4)
