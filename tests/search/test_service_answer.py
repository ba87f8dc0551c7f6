"""`/v1/answer`: the answers are the model's own; mistakes are 4xx."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answered import answering_model, draw_two
from colours import ColourModel

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mmbert import MMBert
from mmbert.api.answering import Answerer
from mmbert.search.index import SearchIndex, build_index
from mmbert.search.service.app import make_app
from mmbert.search.service.core import Service, name_of
from mmbert.search.service.features.answer import answer_all
from mmbert.search.service.offers import Further

IMAGE, _, BOXES = draw_two(np.random.default_rng(1))
CORNERS = [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h in BOXES]


def encoded() -> str:
    out = io.BytesIO()
    IMAGE.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def bert() -> MMBert:
    return answering_model()


@pytest.fixture
def service(folder: Path, out: Path, bert: MMBert) -> Service:
    build_index(ColourModel(), folder, out)
    return Service(SearchIndex.open(out, ColourModel()), further=[Further(bert)])


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


def test_answers_are_the_models_own(client: TestClient, bert: MMBert) -> None:
    asked: dict[str, Any] = {"image": encoded(), "question": "what is left?", "boxes": CORNERS, "k": 3}
    answer = client.post("/v1/answer", json=asked)
    assert answer.status_code == 200, answer.text
    own = bert.answer(IMAGE, "what is left?", boxes=CORNERS, k=3)
    assert [one["answer"] for one in answer.json()["answers"]] == [one.text for one in own]
    assert [one["probability"] for one in answer.json()["answers"]] == pytest.approx(
        [one.probability for one in own], abs=1e-5
    )
    of_index = client.post("/v1/answer", json={"id": name_of("pictures/red.png"), "question": "what is left?"})
    assert len(of_index.json()["answers"]) == 5
    able = {one["name"]: one["available"] for one in client.get("/v1").json()["capabilities"]}
    assert able["answer"]
    together = answer_all(Answerer(bert), [(IMAGE, "what is left?", CORNERS, 3), (IMAGE, "is there one?", None, 1)])
    assert [[one.text for one in found] for found in together] == [
        [one.text for one in own], [one.text for one in bert.answer(IMAGE, "is there one?", k=1)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"question": "x"}, 400),
        ({"question": "  ", "image": "IMAGE"}, 400),
        ({"question": "x", "image": "IMAGE", "id": "y"}, 400),
        ({"question": "x", "id": name_of("none.png")}, 400),
        ({"question": "x", "image": "IMAGE", "boxes": [[1, 2, 3]]}, 422),
        ({"question": "x", "image": "IMAGE", "boxes": [[9, 9, 1, 1]]}, 400),
        ({"question": "x", "image": "IMAGE", "k": 0}, 422),
    ],
)
def test_a_mistake_is_a_4xx_that_says_what_it_is(client: TestClient, body: dict[str, Any], status: int) -> None:
    if body.get("image") == "IMAGE":
        body = body | {"image": encoded()}
    answer = client.post("/v1/answer", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
