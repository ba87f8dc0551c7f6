"""Downloading images from a server of this test on 127.0.0.1."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from mmbert.data import download as module
from mmbert.data.download import Downloaded, Limits, as_jpeg, download
from mmbert.errors import DataError, ImageError


def encoded(kind: str, size: tuple[int, int] = (20, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts what it was asked."""

    def do_GET(self) -> None:
        asked: Counter[str] = self.server.asked  # type: ignore[attr-defined]
        asked[self.path] += 1
        if self.path == "/busy" and asked[self.path] < 3:
            self.answer(503)
        elif self.path in ("/a.jpg", "/busy", "/b%20%C3%A4.jpg"):
            self.answer(200, JPEG)
        elif self.path == "/c.png":
            self.answer(200, PNG)
        elif self.path == "/big":
            self.answer(200, b"x" * 6000)
        elif self.path == "/text":
            self.answer(200, b"<html>gone</html>")
        elif self.path == "/cut":
            self.answer(200, JPEG[: len(JPEG) // 2])
        elif self.path == "/short":
            self.answer(200, JPEG, claim=len(JPEG) + 100)
        elif self.path == "/moved":
            self.answer(302, to="/a.jpg")
        elif self.path == "/away":
            self.answer(302, to="file:///etc/hostname")
        elif self.path == "/ftp":
            self.answer(302, to="ftp://127.0.0.1/a.jpg")
        elif self.path == "/always":
            self.answer(500)
        else:
            self.answer(404)

    def answer(self, code: int, body: bytes = b"", to: str = "", claim: int | None = None) -> None:
        self.send_response(code)
        if to:
            self.send_header("Location", to)
        self.send_header("Content-Length", str(len(body) if claim is None else claim))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked = Counter()  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


LIMITS = Limits(workers=3, timeout=20, tries=3, first_wait=0.01, max_bytes=5000, side=16)


def get(
    server: ThreadingHTTPServer, out: Path, paths: list[str], limits: Limits = LIMITS, again: bool = False
) -> Downloaded:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    links = [(f"{i:02d}.jpg", path if ":" in path else base + path, f"a.tsv:{i + 1}") for i, path in enumerate(paths)]
    return download(links, out, limits, again=again)


def test_images_are_saved_as_jpeg_no_larger_than_asked(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = get(server, tmp_path / "images", ["/a.jpg", "/c.png", "/b ä.jpg", "/moved"])
    assert (result.saved, result.already, result.dead) == (4, 0, 0)
    for i in range(4):
        with Image.open(tmp_path / "images" / f"{i:02d}.jpg") as image:
            assert (image.format, image.size) == ("JPEG", (16, 8))
    assert not list(tmp_path.rglob("*.part"))


def test_an_image_that_needs_no_change_keeps_its_bytes() -> None:
    assert as_jpeg(JPEG, 20) == JPEG
    assert as_jpeg(JPEG, None) == JPEG
    with Image.open(io.BytesIO(as_jpeg(PNG, None))) as image:
        assert (image.format, image.size) == ("JPEG", (20, 10))
    with pytest.raises(ImageError):
        as_jpeg(b"<html>", None)


def test_dead_links_are_reported_with_their_reasons(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    paths = ["/gone", "/big", "/text", "/cut", "/away", "/ftp", "file:///etc/hostname", "/always", "/a.jpg", "/short"]
    result = get(server, tmp_path, paths)
    assert (result.saved, result.dead) == (1, 9)
    journal = [json.loads(line) for line in (tmp_path / "links.jsonl").read_text().splitlines()]
    why = {entry["file"]: entry["dead"] for entry in journal}
    assert why["00.jpg"] == "HTTP 404"
    assert why["01.jpg"] == "larger than 5,000 bytes"
    assert why["02.jpg"].startswith("not a usable image")
    assert why["03.jpg"].startswith("not a usable image")
    assert why["04.jpg"] == "HTTP 302", "the library itself follows no redirect to a file"
    assert why["05.jpg"] == why["06.jpg"] == "neither http nor https"
    assert why["07.jpg"] == "HTTP 500"
    assert why["08.jpg"] is None
    assert why["09.jpg"] == "the answer was cut short"
    assert {entry["where"] for entry in journal} == {f"a.tsv:{i}" for i in range(1, 11)}
    assert result.reasons["neither http nor https"] == 2
    assert server.asked["/always"] == 3  # type: ignore[attr-defined]
    assert server.asked["/gone"] == 1, "what is gone is not asked for again"  # type: ignore[attr-defined]


def test_a_busy_server_is_asked_again(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert get(server, tmp_path, ["/busy"]).saved == 1
    assert server.asked["/busy"] == 3  # type: ignore[attr-defined]


def test_a_second_run_asks_for_nothing_that_is_settled(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    get(server, tmp_path, ["/a.jpg", "/gone"])
    with (tmp_path / "links.jsonl").open("a") as journal:
        journal.write('{"file": "02.jpg", "de')  # a crash in the middle of a line
    result = get(server, tmp_path, ["/a.jpg", "/gone", "/c.png"])
    assert (result.saved, result.already, result.dead) == (1, 1, 1)
    assert dict(server.asked) == {"/a.jpg": 1, "/gone": 1, "/c.png": 1}  # type: ignore[attr-defined]
    files = [json.loads(line)["file"] for line in (tmp_path / "links.jsonl").read_text().splitlines()]
    assert sorted(files) == ["00.jpg", "01.jpg", "02.jpg"]
    assert get(server, tmp_path, ["/a.jpg", "/gone"], again=True).dead == 1
    assert server.asked["/gone"] == 2  # type: ignore[attr-defined]


def test_nobody_listens(tmp_path: Path) -> None:
    result = download([("a.jpg", "http://127.0.0.1:1/a.jpg", "a:1")], tmp_path, Limits(tries=1, timeout=5))
    assert list(result.reasons) == ["no connection (ConnectionRefusedError)"]


def test_files_stay_in_their_folder(tmp_path: Path) -> None:
    for name in ("../a.jpg", "/a.jpg"):
        with pytest.raises(DataError, match=r"x.tsv:1: .*outside the folder"):
            download([(name, "http://127.0.0.1:1/a", "x.tsv:1")], tmp_path)


def test_a_damaged_journal_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / module.JOURNAL).write_text('{"file": "a.jpg", "dead": null}\n[1]\n{"file": "b.jpg", "dead": null}\n')
    with pytest.raises(DataError, match=r"links.jsonl:2: is damaged"):
        download([], tmp_path)
