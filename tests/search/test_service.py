"""The service over HTTP: answers equal offline ones, mistakes are 4xx, and nothing but the index is given out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import ColourModel, picture, save_picture

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mmbert.cli.serve import listening
from mmbert.errors import ConfigError, UsageError
from mmbert.search.index import SearchIndex, build_index
from mmbert.search.service import core, keys
from mmbert.search.service.app import make_app
from mmbert.search.service.core import Service, Settings, key_of, name_of
from mmbert.vision import images


def encoded(image: Any, kind: str = "PNG") -> str:
    out = io.BytesIO()
    image.save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture
def index(model: ColourModel, folder: Path, out: Path) -> SearchIndex:
    build_index(model, folder, out)
    return SearchIndex.open(out, model)


def client_of(index: SearchIndex, **settings: Any) -> TestClient:
    return TestClient(make_app(Service(index, Settings(**settings))), raise_server_exceptions=False)


@pytest.fixture
def client(index: SearchIndex) -> Iterator[TestClient]:
    with client_of(index, max_bytes=200_000, max_pixels=10_000) as client:
        yield client


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["name"] for hit in answer.json()["hits"]]


# -- answers are those of the index ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["dunkel rot", "أزرق", "vert"])
def test_a_text_finds_what_it_finds_offline(client: TestClient, index: SearchIndex, text: str) -> None:
    asked = {"text": text, "k": 4, "offset": 1, "rerank": 4, "where": "year >= 2000"}
    hits = client.post("/v1/search", json=asked).json()["hits"]
    offline = index.search(text, k=4, offset=1, rerank=4, where="year >= 2000")
    assert [(hit["name"], hit["rank"], hit["score"], hit["match"]) for hit in hits] == [
        (hit.image.key, hit.rank, round(hit.score, 6), None if hit.match is None else round(hit.match, 6))
        for hit in offline
    ]
    assert hits[0]["captions"] == {code: list(said) for code, said in offline[0].captions.items()}
    assert hits[0]["columns"]["year"] == offline[0].extra["year"]


def test_an_image_and_both_and_more_like_this(client: TestClient, index: SearchIndex) -> None:
    blue = encoded(picture("blue"))
    assert set(names(client.post("/v1/search", json={"image": blue, "k": 2}))) == {
        "pictures/blue.png",
        "pictures/dark-blue.png",
    }
    both = {"text": "red", "image": f"data:image/png;base64,{blue}", "image_weight": 0.9, "k": 3}
    offline = index.search("red", image=picture("blue"), image_weight=0.9, k=3)
    assert names(client.post("/v1/search", json=both)) == [hit.image.key for hit in offline if hit.image]
    like = {"like": name_of("pictures/green.png"), "k": 1}
    assert names(client.post("/v1/search", json=like)) == ["pictures/dark-green.png"]


def test_vectors_and_matches_are_those_of_the_model(client: TestClient, model: ColourModel) -> None:
    red, green = picture("red"), picture("dark green")
    answer = client.post("/v1/embed", json={"texts": ["rot", "أزرق"], "images": [encoded(red)]}).json()
    assert np.allclose(answer["texts"], model.encode_text(["rot", "أزرق"]))
    assert np.allclose(answer["images"], model.encode_images([red]))
    assert answer["size"] == 4
    asked = {"images": [encoded(green)], "ids": [name_of("pictures/red.png")], "texts": ["dunkel grün", "rot", "blau"]}
    found = client.post("/v1/match", json=asked).json()["probabilities"]
    assert np.allclose(found, model.match([green, red], ["dunkel grün", "rot", "blau"]))


def test_requests_together_get_the_answers_they_get_alone(index: SearchIndex) -> None:
    """Fifty at once, computed in batches, against one after the other with a batch of one."""
    words = ["rot", "dark green", "bleu", "أصفر", "weiß"] * 10
    asked = [{"text": word, "k": 3, "rerank": number % 4} for number, word in enumerate(words)]
    with client_of(index, batch=1) as alone:
        expected = [alone.post("/v1/search", json=one).json() for one in asked]
    service = Service(index, Settings(batch=64))

    async def at_once() -> list[Any]:
        import httpx

        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            return await asyncio.gather(*(browser.post("/v1/search", json=one) for one in asked))

    assert [answer.json() for answer in asyncio.run(at_once())] == expected
    service.batcher.close()
    batches = [line for line in service.metrics.text().splitlines() if line.startswith("mmbert_batch_jobs_count")]
    assert int(batches[0].split()[-1]) < 50  # fewer batches than requests: they did go together


# -- images ---------------------------------------------------------------------------------------------------------


def test_images_of_the_index_and_nothing_else(client: TestClient, folder: Path) -> None:
    whole = client.get(f"/v1/images/{name_of('pictures/red.png')}")
    assert whole.content == (folder / "pictures/red.png").read_bytes()
    assert whole.headers["content-type"] == "image/png"
    small = client.get(f"/v1/images/{name_of('pictures/red.png')}?size=32")
    assert small.headers["content-type"] == "image/webp"
    again = client.get(f"/v1/images/{name_of('pictures/red.png')}", headers={"if-none-match": whole.headers["etag"]})
    assert again.status_code == 304
    (folder / "private.png").write_bytes(whole.content)
    for key in ("private.png", "metadata.jsonl", "../../etc/passwd", "/etc/passwd", str(folder / "pictures/red.png")):
        assert client.get(f"/v1/images/{name_of(key)}").status_code == 404
    for name in ("x", "%00", "..%2F..%2Fetc%2Fpasswd", "=", "é"):
        assert client.get(f"/v1/images/{name}").status_code == 404
    (folder / "pictures/red.png").unlink()
    assert client.get(f"/v1/images/{name_of('pictures/red.png')}").status_code == 404


@pytest.mark.parametrize("key", ["a.png", "sub dir/it's.png", "grün/日本.webp", "a" * 500])
def test_names_of_images_come_back(key: str) -> None:
    assert key_of(name_of(key)) == key


def test_the_service_follows_an_index_that_is_brought_up_to_date(
    index: SearchIndex, model: ColourModel, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "LOOK_EVERY", 0.0)
    with client_of(index) as client:
        asked = {"text": "red", "k": 50}
        assert len(names(client.post("/v1/search", json=asked))) == 12
        small = f"/v1/images/{name_of('pictures/red.png')}?size=32"
        before = client.get(small).content
        save_picture(folder / "pictures/red.png", "green")
        with (folder / "metadata.jsonl").open("a") as file:
            file.write('{"file_name": "pictures/new.png"}\n')
        save_picture(folder / "pictures/new.png", "red")
        build_index(model, folder, out)
        assert "pictures/new.png" in names(client.post("/v1/search", json=asked))
        assert client.get("/v1").json()["images"] == 13
        assert client.get(small).content != before


# -- mistakes -------------------------------------------------------------------------------------------------------

GIF = "R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="  # one pixel

MISTAKES: list[tuple[str, Any, int]] = [
    ("/v1/search", {}, 400),
    ("/v1/search", {"text": "   "}, 400),
    ("/v1/search", {"text": ""}, 422),
    ("/v1/search", {"text": "x" * 2001}, 422),
    ("/v1/search", {"text": 3}, 422),
    ("/v1/search", {"text": "red", "k": 0}, 422),
    ("/v1/search", {"text": "red", "k": 10**30}, 422),
    ("/v1/search", {"text": "red", "k": "5"}, 422),
    ("/v1/search", {"text": "red", "colour": 1}, 422),
    ("/v1/search", {"text": "red", "where": "nothing = 1"}, 400),
    ("/v1/search", {"text": "red", "where": "year = '"}, 400),
    ("/v1/search", {"text": "red", "where": "1; DROP TABLE images"}, 400),
    ("/v1/search", {"text": "red", "like": "x"}, 400),
    ("/v1/search", {"like": "!!"}, 400),
    ("/v1/search", {"like": name_of("none.png")}, 400),
    ("/v1/search", {"image": "not base64"}, 400),
    ("/v1/search", {"image": base64.b64encode(b"<svg/>").decode()}, 400),
    ("/v1/search", {"image": GIF}, 400),
    ("/v1/search", {"image": encoded(picture("red"))[:60]}, 400),
    ("/v1/search", {"image": encoded(picture("red", (200, 200)))}, 400),
    ("/v1/search", {"image": encoded(picture("red")), "rerank": 5}, 400),
    ("/v1/embed", {}, 400),
    ("/v1/embed", {"texts": [" "]}, 400),
    ("/v1/embed", {"texts": ["a"] * 65}, 422),
    ("/v1/match", {"texts": ["a"]}, 400),
    ("/v1/match", {"texts": [], "images": [GIF]}, 422),
    ("/v1/match", {"texts": ["a"] * 64, "ids": ["x"] * 9}, 400),
    ("/v1/match", {"texts": ["a"], "ids": ["x"]}, 400),
]


@pytest.mark.parametrize(("path", "body", "status"), MISTAKES)
def test_a_mistake_is_a_4xx_that_says_what_it_is(client: TestClient, path: str, body: Any, status: int) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_an_image_that_even_pillow_refuses_is_refused_for_its_size(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    answer = client.post("/v1/search", json={"image": encoded(picture("red", (99, 99)))})
    problem = answer.json()["error"]
    assert (answer.status_code, problem["hint"]) == (400, "send one of at most 10,000")
    assert "is above" in problem["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"red"',
        b"\xff\xfe",
        b'{"text": "\\ud800"}',
        b'{"text": NaN}',
        b'{"text": "red", "image_weight": NaN}',
        b'{"text": "red", "image_weight": 1e999}',
        b'{"text": "red", "k": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"text": "red\\u0000"}',
    ],
)
def test_a_body_that_is_no_request_is_a_4xx(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert 200 <= answer.status_code < 500, answer.text
    assert answer.status_code in (200, 400, 422)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


JSON = "application/json"
BODIES = [
    (b'{"text": "red"}', None, "the body has no content type"),
    (b'{"text": "red"}', "application/x-www-form-urlencoded", "sent as application/x-www-form-urlencoded, not as JSON"),
    (b'{"text": "red"', JSON, "not valid JSON: Expecting ',' delimiter at character 15"),
    (b"\xff{}", JSON, "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 0"),
    (b"", JSON, "the request has no body"),
    (b'"red"', JSON, "the body is not a JSON object"),
    (b"null", JSON, "the body is not a JSON object"),
]


@pytest.mark.parametrize(("body", "kind", "message"), BODIES)
def test_a_body_that_is_no_json_is_told_with_how_to_send_it(
    client: TestClient, body: bytes, kind: str | None, message: str
) -> None:
    answer = client.post("/v1/search", content=body, headers={} if kind is None else {"content-type": kind})
    problem = answer.json()["error"]
    assert message in problem["message"]
    assert "Content-Type: application/json" in problem["hint"]


def test_base64_may_be_in_lines(client: TestClient) -> None:
    blue = base64.encodebytes(base64.b64decode(encoded(picture("blue", (60, 60))))).decode()
    assert "\n" in blue.strip()
    for image in (blue, blue.replace("\n", "\r\n"), f" data:image/png;base64,\n{blue}"):
        assert len(names(client.post("/v1/search", json={"image": image, "k": 2}))) == 2
    answer = client.post("/v1/search", json={"image": "no base64!"})
    assert answer.json()["error"]["message"].startswith("the image is not base64: ")


def test_too_large_a_body_is_refused_with_and_without_its_length(client: TestClient) -> None:
    refused = client.post("/v1/search", content=b"x" * 200_001)
    assert (refused.status_code, refused.json()["error"]["hint"]) == (413, "at most 200,000 bytes")
    parts = (b"x" * 50_000 for _ in range(5))
    assert client.post("/v1/search", content=parts).status_code == 413
    assert names(client.post("/v1/search", json={"text": "red", "k": 1}))  # the next is served


def test_other_paths_and_methods(client: TestClient) -> None:
    assert client.get("/nothing").status_code == 404
    assert client.get("/v1/search").status_code == 405
    assert client.get("/nothing").json()["error"]["message"] == "Not Found"


def test_what_the_model_cannot_do_is_501_with_the_reason(client: TestClient) -> None:
    answer = client.post("/v1/attention", json={"text": "red", "id": name_of("pictures/red.png")})
    assert answer.status_code == 501
    assert "does not show its attention" in answer.json()["error"]["message"]
    about = client.get("/v1").json()
    assert {one["name"]: one["available"] for one in about["capabilities"]} == {
        "answer": False, "attention": False, "caption": False, "embed": True, "ground": False, "match": True,
        "search": True, "translate": False,
    }  # fmt: skip
    assert "/v1/attention" not in client.get("/openapi.json").json()["paths"]
    assert (about["images"], about["languages"]) == (12, ["ar", "de", "en", "fr"])
    assert about["columns"]["year"] == "int64"


# -- load, deadlines, keys ------------------------------------------------------------------------------------------


class Slow(ColourModel):
    """Takes its time over texts."""

    def encode_text(self, texts: Any, **options: Any) -> Any:
        import time

        time.sleep(0.2)
        return super().encode_text(texts, **options)


def slow_statuses(folder: Path, out: Path, count: int, **settings: Any) -> list[Any]:
    build_index(ColourModel(), folder, out)
    service = Service(SearchIndex.open(out, Slow()), Settings(batch=1, **settings))

    async def at_once() -> list[Any]:
        import httpx

        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            asked = (browser.post("/v1/search", json={"text": "red", "k": 1}) for _ in range(count))
            return await asyncio.gather(*asked)

    answers = asyncio.run(at_once())
    service.batcher.close()
    return answers


def test_a_full_queue_says_when_to_come_again(folder: Path, out: Path) -> None:
    answers = slow_statuses(folder, out, 8, queue=3)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1


def test_who_waits_too_long_is_told(folder: Path, out: Path) -> None:
    statuses = [answer.status_code for answer in slow_statuses(folder, out, 6, timeout=0.5)]
    assert 504 in statuses
    assert set(statuses) <= {200, 504}


def test_closing_finishes_what_waits_and_takes_nothing_new(index: SearchIndex) -> None:
    app = make_app(Service(index))
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 200
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.post("/v1/search", json={"text": "red"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_an_image_of_the_index_may_be_of_a_kind_and_size_that_is_not_taken_from_outside(
    model: ColourModel, tmp_path: Path
) -> None:
    save_picture(tmp_path / "photos" / "red.tiff", "red", size=(300, 300))
    build_index(model, tmp_path / "photos", tmp_path / "index")
    with client_of(SearchIndex.open(tmp_path / "index", model), max_pixels=10_000) as client:
        name = name_of("red.tiff")
        found = client.post("/v1/match", json={"texts": ["red", "blue"], "ids": [name]})
        assert found.status_code == 200, found.text
        red, blue = found.json()["probabilities"][0]
        assert red > blue
        data = base64.b64encode((tmp_path / "photos" / "red.tiff").read_bytes()).decode()
        assert client.post("/v1/match", json={"texts": ["red"], "images": [data]}).status_code == 400


def test_a_key_needs_a_folder_to_be_kept_in(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        keys.new_key(tmp_path / "nowhere" / "keys.json", "alice")


def test_an_address_that_is_taken_is_said(index: SearchIndex) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            listening("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"cannot listen on nope\.invalid"):
        listening("nope.invalid", 1)
    with listening("127.0.0.1", 0) as held:
        assert held.getsockname()[1]


def test_keys(index: SearchIndex, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.new_key(file, "alice")
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    keys.new_key(file, "bob")
    with pytest.raises(UsageError, match="there is a key 'alice' already"):
        keys.new_key(file, "alice")
    known = keys.read_keys(file)
    assert set(known) == {"alice", "bob"}
    with client_of(index, keys=known) as client:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": key}, {"authorization": "Basic x"}):
            assert client.post("/v1/search", json={"text": "red"}, headers=header).status_code == 401
            assert client.get(f"/v1/images/{name_of('pictures/red.png')}", headers=header).status_code == 401
            assert client.get("/metrics", headers=header).status_code == 401
        for header, what in (
            ({}, "an API key is needed"),
            ({"authorization": key}, "an API key is needed"),
            ({"authorization": "Bearer "}, "an API key is needed"),
            ({"authorization": f"Bearer {key[:-1]}"}, "the API key is wrong"),
        ):
            assert client.get("/v1", headers=header).json()["error"]["message"] == what
        assert names(client.post("/v1/search", json={"text": "red"}, headers={"authorization": f"Bearer {key}"}))
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200
    file.write_text('{"alice": "short"}')
    with pytest.raises(ConfigError, match="cannot read the keys"):
        keys.read_keys(file)


def test_other_origins_only_where_they_are_named(index: SearchIndex) -> None:
    asking = {"origin": "https://there.example", "access-control-request-method": "POST"}
    with client_of(index) as client:
        assert "access-control-allow-origin" not in client.options("/v1/search", headers=asking).headers
    with client_of(index, cors=("https://there.example",)) as client:
        allowed = client.options("/v1/search", headers=asking).headers
        assert allowed["access-control-allow-origin"] == "https://there.example"


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    client.post("/v1/search", json={"text": "red"})
    client.post("/v1/search", json={})
    client.get(f"/v1/images/{name_of('pictures/red.png')}")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'mmbert_requests_total{method="POST",path="/v1/search",status="200"} 1' in lines
    assert 'mmbert_requests_total{method="POST",path="/v1/search",status="400"} 1' in lines
    assert 'mmbert_requests_total{method="GET",path="/v1/images/{name}",status="200"} 1' in lines
    assert 'mmbert_request_seconds_count{path="/v1/search"} 2' in lines
    assert "mmbert_index_images 12" in lines
    for line in lines:
        assert line.startswith("# TYPE ") or float(line.rpartition(" ")[2]) >= 0


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/page.css", "/page.js", "/service.js", "/look.js", "/ask.js", "/translate.js"):
        text = client.get(path).text
        assert len(text) > 1000
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
    assert json.loads(client.get("/openapi.json").text)["info"]["title"] == "mm-bert"
