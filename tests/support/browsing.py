"""A real browser without a window, and a service for it to look at. Needs selenium, Chromium and its driver."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 240


@contextmanager
def serving(service: Any) -> Iterator[str]:
    """The address of a service while it runs."""
    import uvicorn

    from mmbert.search.service.app import make_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(service), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def browsing(width: int = 1100, height: int = 900, *, offline: bool = False) -> Iterator[Any]:
    """A browser; ``offline``: nothing but files reaches it."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    size = f"--window-size={width},{height}"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", size):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Driver(DRIVER))
    try:
        if offline:
            driver.execute_cdp_cmd("Network.enable", {})
            conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        yield driver
    finally:
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
    """What elements say."""
    return [element.text for element in browser.find_elements("css selector", css)]


def complaints(browser: Any) -> list[Any]:
    """What the browser found wrong with the page."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
