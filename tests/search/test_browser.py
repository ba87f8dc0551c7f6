"""The page in a real browser: searching in three scripts, more like this, an upload, and what words look at.

Needs selenium, Chromium and its driver, and the starter model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import BROWSER, DRIVER, browsing, complaints, serving, texts, until
from PIL import Image

from mmbert.api.loading import SHIPPED

pytest.importorskip("selenium")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DRIVER is None or BROWSER is None, reason="no Chromium here"),
    pytest.mark.skipif(not (SHIPPED["starter"] / "config.json").is_file(), reason="no starter model here"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """An index of a hundred drawings, served."""
    from mmbert import MMBert
    from mmbert.search.index import SearchIndex, build_index
    from mmbert.search.service.core import Service

    model = MMBert.from_pretrained("starter")
    folder = tmp_path_factory.mktemp("index")
    build_index(model, "starter:validation/noto", folder)
    index = SearchIndex.open(folder, model)
    with serving(Service(index)) as address:
        yield index, address


@pytest.fixture
def browser() -> Iterator[Any]:
    with browsing() as driver:
        yield driver


def shown(browser: Any, title: str) -> list[str]:
    """Names of the images of the search that the status line tells of."""
    until(lambda: title in texts(browser, "#status")[0] and "of 100 images" in texts(browser, "#status")[0])
    return texts(browser, ".tile .name")


def test_a_missing_key_and_a_wrong_one_are_told_apart(service: tuple[Any, str], browser: Any, tmp_path: Path) -> None:
    from mmbert.search.service import keys
    from mmbert.search.service.core import Service, Settings

    key = keys.new_key(tmp_path / "keys.json", "alice")
    with serving(Service(service[0], Settings(keys=keys.read_keys(tmp_path / "keys.json")))) as address:
        browser.get(address)
        until(lambda: "An API key is needed" in texts(browser, "#status")[0])
        box = browser.switch_to.active_element
        assert box.get_attribute("id") == "key"
        box.send_keys("wrong\t")
        until(lambda: "The API key is wrong" in texts(browser, "#status")[0])
        assert box.get_attribute("value") == ""  # nobody sees what to mend in it
        assert browser.switch_to.active_element == box
        box.send_keys(f"{key}\n")
        until(lambda: "100 images" in texts(browser, "#about")[0])
        assert not box.is_displayed()
        assert browser.switch_to.active_element.get_attribute("id") == "text"
        browser.switch_to.active_element.send_keys("maua\n")
        assert len(shown(browser, "maua")) == 24


def test_a_filter_is_seen_and_holds_for_what_follows(service: tuple[Any, str], browser: Any) -> None:
    index, address = service
    browser.get(address)
    until(lambda: "100 images" in texts(browser, "#about")[0])
    where, half = browser.find_element("id", "where"), "id < '5'"
    browser.find_element("css selector", "summary").click()
    where.send_keys(half)
    browser.find_element("id", "text").send_keys("maua\n")
    until(lambda: "filtered: 24 of 100 images" in texts(browser, "#status")[0])
    where.clear()
    where.send_keys("bytes < 0")  # is not asked for yet
    browser.find_element("id", "more").click()
    until(lambda: "filtered: 48 of 100 images" in texts(browser, "#status")[0])
    offline = [hit.image.key for k in (0, 24) for hit in index.search("maua", k=24, offset=k, rerank=30, where=half)]
    assert texts(browser, ".tile .name") == offline
    where.send_keys("\n")
    until(lambda: "no image meets the filter" in texts(browser, "#status")[0])
    where.clear()
    where.send_keys("length > 1\n")
    until(lambda: texts(browser, "#status")[0].startswith("Cannot filter by 'length > 1': No field named length ("))
    browser.find_element("css selector", "summary").click()
    assert texts(browser, "summary") == ["Filter (set)"]


def test_what_is_like_a_hit_begins_at_the_top(service: tuple[Any, str], browser: Any) -> None:
    browser.get(f"{service[1]}?q=maua")
    shown(browser, "maua")
    browser.find_elements("css selector", ".tile .like")[-1].send_keys("\n")
    shown(browser, "Images like")
    assert browser.execute_script("return scrollY") == 0
    assert browser.switch_to.active_element.get_attribute("id") == "results"


def test_a_service_that_has_ended_is_said(service: tuple[Any, str], browser: Any) -> None:
    from mmbert.search.service.core import Service

    with serving(Service(service[0])) as address:
        browser.get(address)
        until(lambda: "100 images" in texts(browser, "#about")[0])
    browser.find_element("id", "text").send_keys("maua\n")
    until(lambda: "The service does not answer" in texts(browser, "#status")[0])


def test_a_large_photo_is_made_smaller_before_it_is_sent(
    service: tuple[Any, str], browser: Any, tmp_path: Path
) -> None:
    Image.new("RGB", (8000, 6000), (200, 20, 20)).save(tmp_path / "red.png")  # more pixels than the service takes
    browser.get(service[1])
    until(lambda: "100 images" in texts(browser, "#about")[0])
    browser.find_element("id", "file").send_keys(str(tmp_path / "red.png"))
    assert len(shown(browser, "Images like yours")) == 24
    sent = browser.find_element("css selector", "#asked-image img")
    assert (sent.get_property("naturalWidth"), sent.get_property("naturalHeight")) == (1600, 1200)


def test_a_person_searches(service: tuple[Any, str], browser: Any, tmp_path: Path) -> None:
    index, address = service
    browser.get(address)
    until(lambda: "100 images" in texts(browser, "#about")[0])
    box = browser.find_element("id", "text")
    for text in ("犬", "جمل", "maua"):
        box.clear()
        box.send_keys(text + "\n")
        offline = [hit.image.key for hit in index.search(text, k=24, rerank=30)]
        assert shown(browser, text) == offline
    assert browser.execute_script("return getComputedStyle(document.querySelector('#text')).direction") == "ltr"

    first = texts(browser, ".tile .name")[0]
    browser.find_elements("css selector", ".tile .like")[0].click()
    alike = shown(browser, "Images like")
    assert len(alike) == 24
    assert first not in alike

    Image.new("RGB", (60, 60), (200, 20, 20)).save(tmp_path / "red.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "red.png"))
    offline = [hit.image.key for hit in index.search(tmp_path / "red.png", k=24)]
    assert shown(browser, "Images like yours") == offline
    browser.find_element("id", "drop-image").click()

    box.send_keys("camel in the sand\n")
    shown(browser, "camel")
    browser.find_elements("css selector", ".tile .inside")[0].click()
    words = until(lambda: texts(browser, "#words button"))
    assert words == ["camel", "in", "the", "sand"]
    browser.execute_script("document.querySelector('#words button').focus()")
    lit = until(lambda: browser.execute_script(
        "return [...document.querySelectorAll('#cells rect')].map((cell) => cell.getAttribute('fill-opacity'))"
    ))  # fmt: skip
    assert max(map(float, lit)) == pytest.approx(0.8)
    assert min(map(float, lit)) == 0
    assert texts(browser, "#look-said")[0].startswith("“")
    assert complaints(browser) == []
