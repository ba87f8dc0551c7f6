"""`/v1/caption` and `/v1/translate`: the texts are the model's own, alone or in a batch; mistakes are 4xx."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from colours import ColourModel, picture
from written import TEXTS, masked_writer, writing_model

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mmbert import MMBert
from mmbert.api.writer import Writer, Written
from mmbert.search.index import SearchIndex, build_index
from mmbert.search.service.app import make_app
from mmbert.search.service.core import Service, Settings, name_of
from mmbert.search.service.offers import Further

BLUE, SHORT = picture("blue"), 4


def encoded(image: Any = BLUE) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def bert() -> MMBert:
    return writing_model()


@pytest.fixture
def index(folder: Path, out: Path) -> SearchIndex:
    build_index(ColourModel(), folder, out)
    return SearchIndex.open(out, ColourModel())


@pytest.fixture
def client(index: SearchIndex, bert: MMBert) -> Iterator[TestClient]:
    service = Service(index, further=[Further(bert)])
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


def same(found: Sequence[Any], own: Sequence[Written]) -> bool:
    texts = [one["text"] for one in found] == [one.text for one in own]
    return texts and [one["score"] for one in found] == pytest.approx([one.score for one in own], abs=1e-4)


def test_captions_are_the_models_own(client: TestClient, bert: MMBert, folder: Path) -> None:
    asked = {"to": "de", "beam": 3, "nbest": 2, "length_penalty": 0.5, "max_tokens": SHORT}
    answer = client.post("/v1/caption", json={"image": encoded(), **asked})
    assert answer.status_code == 200, answer.text
    (own,) = Writer(bert).write(None, [BLUE], **asked)  # type: ignore[arg-type]
    assert len(own) == 2
    assert same(answer.json()["captions"], own)
    of_index = client.post("/v1/caption", json={"id": name_of("pictures/red.png"), **asked}).json()["captions"]
    (own,) = Writer(bert).write(None, [folder / "pictures/red.png"], **asked)  # type: ignore[arg-type]
    assert same(of_index, own)
    assert not same(answer.json()["captions"], own)


def test_translations_are_the_models_own(client: TestClient, bert: MMBert) -> None:
    asked = {"to": "en", "beam": 2, "max_tokens": SHORT}
    found = client.post("/v1/translate", json={"texts": TEXTS, **asked}).json()["translations"]
    alone = Writer(bert).write(TEXTS, **asked)  # type: ignore[arg-type]
    assert all(same(one, own) for one, own in zip(found, alone, strict=True))
    found = client.post("/v1/translate", json={"texts": TEXTS, "image": encoded(), **asked}).json()["translations"]
    shown = Writer(bert).write(TEXTS, [BLUE] * 3, **asked)  # type: ignore[arg-type]
    assert all(same(one, own) for one, own in zip(found, shown, strict=True))
    assert [own[0].score for own in shown] != [own[0].score for own in alone]


def test_requests_that_agree_share_a_batch_and_all_get_what_they_get_alone(index: SearchIndex, bert: MMBert) -> None:
    """Thirty at once, of three kinds that cannot share."""
    options = [{"to": "de", "beam": 2}, {"to": "en", "beam": 2}, {"to": "de", "beam": 1}]
    asked = [{"texts": [TEXTS[n % 3]], "max_tokens": SHORT, **options[n // 10]} for n in range(30)]
    service = Service(index, Settings(batch=64), [Further(bert)])

    async def at_once() -> list[Any]:
        import httpx

        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            return await asyncio.gather(*(browser.post("/v1/translate", json=one) for one in asked))

    answers = asyncio.run(at_once())
    service.batcher.close()
    for one, answer in zip(asked, answers, strict=True):
        (own,) = Writer(bert).write(**one)  # type: ignore[arg-type]
        assert same(answer.json()["translations"][0], own)
    lines = service.metrics.text().splitlines()
    (batches,) = (line for line in lines if line.startswith('mmbert_batch_jobs_count{kind="translate"}'))
    assert 3 <= int(batches.split()[-1]) < 15


def test_the_service_says_which_languages_it_writes(client: TestClient) -> None:
    able = {one["name"]: one for one in client.get("/v1").json()["capabilities"]}
    assert able["caption"]["languages"] == able["translate"]["languages"] == ["de", "en"]
    assert able["match"]["languages"] == []


def test_a_model_without_eyes_translates_texts_alone(index: SearchIndex) -> None:
    service = Service(index, further=[Further(writing_model(vision=None))])
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        asked = {"to": "de", "texts": ["a red dog"], "max_tokens": 2}
        assert client.post("/v1/translate", json=asked).status_code == 200
        refused = client.post("/v1/translate", json={**asked, "image": encoded()})
        assert refused.status_code == 400
        assert "no vision encoder" in refused.json()["error"]["message"]
        refused = client.post("/v1/caption", json={"to": "de", "image": encoded()})
        assert refused.status_code == 501


def test_a_model_that_names_no_language_writes_its_own(index: SearchIndex) -> None:
    """One that writes at [MASK]: requests name no language, and nothing is searched."""
    bert = masked_writer()
    service = Service(index, further=[Further(bert)])
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        able = {one["name"]: one for one in client.get("/v1").json()["capabilities"]}
        assert able["caption"]["available"] and able["translate"]["available"]
        assert able["caption"]["languages"] == able["translate"]["languages"] == []
        answer = client.post("/v1/translate", json={"texts": TEXTS, "max_tokens": SHORT})
        assert answer.status_code == 200, answer.text
        alone = Writer(bert).write(TEXTS, max_tokens=SHORT)
        assert all(same(one, own) for one, own in zip(answer.json()["translations"], alone, strict=True))
        answer = client.post("/v1/caption", json={"image": encoded(), "to": None, "max_tokens": SHORT})
        (own,) = Writer(bert).write(None, [BLUE], max_tokens=SHORT)
        assert same(answer.json()["captions"], own)
        for wrong, said in (({"to": "de"}, "does not name"), ({"beam": 2}, "greedily, at [MASK]")):
            refused = client.post("/v1/translate", json={"texts": TEXTS, **wrong})
            assert refused.status_code == 400
            assert said in refused.json()["error"]["message"]


def test_many_texts_need_no_beam_where_there_is_none(index: SearchIndex) -> None:
    service = Service(index, further=[Further(masked_writer())])
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        asked = {"texts": ["x"] * 64, "max_tokens": 1}
        assert len(client.post("/v1/translate", json=asked).json()["translations"]) == 64


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("caption", {"to": "de"}, 400),
        ("caption", {"to": "de", "image": "IMAGE", "id": "y"}, 400),
        ("caption", {"to": "de", "id": name_of("none.png")}, 400),
        ("caption", {"to": "de", "image": "not base64"}, 400),
        ("caption", {"image": "IMAGE"}, 400),
        ("caption", {"to": "sw", "image": "IMAGE"}, 400),
        ("caption", {"to": "", "image": "IMAGE"}, 422),
        ("caption", {"to": "de", "image": "IMAGE", "beam": 0}, 422),
        ("caption", {"to": "de", "image": "IMAGE", "beam": 17}, 422),
        ("caption", {"to": "de", "image": "IMAGE", "beam": 2, "nbest": 3}, 400),
        ("caption", {"to": "de", "image": "IMAGE", "max_tokens": 0}, 422),
        ("caption", {"to": "de", "image": "IMAGE", "max_tokens": 33}, 400),
        ("caption", {"to": "de", "image": "IMAGE", "length_penalty": 1e9}, 422),
        ("translate", {"to": "de", "texts": ["x"], "length_penalty": 10.1}, 422),
        ("caption", {"to": "de", "image": "IMAGE", "texts": ["x"]}, 422),
        ("translate", {"to": "de"}, 422),
        ("translate", {"to": "de", "texts": []}, 422),
        ("translate", {"to": "de", "texts": ["a", " "]}, 400),
        ("translate", {"to": "de", "texts": ["x" * 2001]}, 422),
        ("translate", {"to": "de", "texts": ["x"] * 65}, 422),
        ("translate", {"to": "de", "texts": ["x"] * 64, "beam": 5}, 400),
        ("translate", {"to": "sw", "texts": ["x"]}, 400),
        ("translate", {"to": "de", "texts": ["x"], "image": "IMAGE", "id": "y"}, 400),
        ("translate", {"to": "de", "texts": "x"}, 422),
    ],
)
def test_a_mistake_is_a_4xx_that_says_what_it_is(
    client: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    if body.get("image") == "IMAGE":
        body = body | {"image": encoded()}
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
