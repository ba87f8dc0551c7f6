"""The page in a real browser: searching in three scripts, more like this, an upload, and what words look at.

Needs selenium, Chromium and its driver, and the starter model.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmbert.api.front_door import SHIPPED

selenium = pytest.importorskip("selenium")
pytest.importorskip("uvicorn")
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DRIVER is None or BROWSER is None, reason="no Chromium here"),
    pytest.mark.skipif(not (SHIPPED["starter"] / "config.json").is_file(), reason="no starter model here"),
]
PATIENCE = 240


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """An index of a hundred drawings, served."""
    import uvicorn

    from mmbert import MMBert
    from mmbert.search.index import SearchIndex, build_index
    from mmbert.search.service.app import make_app
    from mmbert.search.service.core import Service

    model = MMBert.from_pretrained("starter")
    folder = tmp_path_factory.mktemp("index")
    build_index(model, "starter:validation/noto", folder)
    index = SearchIndex.open(folder, model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(Service(index)), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield index, f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Driver(DRIVER))
    yield driver
    driver.quit()


def until(found: Callable[[], Any]) -> Any:
    """What ``found`` gives as soon as it gives something."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except WebDriverException:  # replaced while it was looked at
            pass
        time.sleep(0.1)
    raise AssertionError("the page did not come so far")


def texts(browser: Any, css: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", css)]


def shown(browser: Any, title: str) -> list[str]:
    """Names of the images of the search that the status line tells of."""
    until(lambda: title in texts(browser, "#status")[0] and "of 100 images" in texts(browser, "#status")[0])
    return texts(browser, ".tile .name")


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
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
