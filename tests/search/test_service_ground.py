"""`/v1/ground`: the answers are the model's own; mistakes are 4xx."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import ColourModel
from grounded import draw_squares, grounding_model

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mmbert import MMBert
from mmbert.search.index import SearchIndex, build_index
from mmbert.search.service.app import make_app
from mmbert.search.service.core import Service, name_of
from mmbert.search.service.offers import Further

IMAGE, NAMES, BOXES = draw_squares(np.random.default_rng(1))
CORNERS = [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h in BOXES]


def encoded() -> str:
    out = io.BytesIO()
    IMAGE.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def bert() -> MMBert:
    return grounding_model()


@pytest.fixture
def client(folder: Path, out: Path, bert: MMBert) -> Iterator[TestClient]:
    build_index(ColourModel(), folder, out)
    service = Service(SearchIndex.open(out, ColourModel()), further=[Further(bert)])
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


def test_answers_are_the_models_own(client: TestClient, bert: MMBert) -> None:
    asked = {"image": encoded(), "expression": f"the {NAMES[0]} square", "boxes": CORNERS, "k": 2}
    answer = client.post("/v1/ground", json=asked)
    assert answer.status_code == 200, answer.text
    found, own = answer.json(), bert.ground(IMAGE, asked["expression"], CORNERS)  # type: ignore[arg-type]
    assert (found["width"], found["height"], found["candidates"]) == (64, 64, 4)
    assert [one["number"] for one in found["best"]] == own.order(2)
    assert [one["box"] for one in found["best"]] == [CORNERS[i] for i in own.order(2)]
    assert [one["score"] for one in found["best"]] == pytest.approx(
        [float(own.scores[i]) for i in own.order(2)], abs=1e-4
    )
    windows = client.post("/v1/ground", json={"image": encoded(), "expression": "the red square"}).json()
    assert windows["candidates"] == 9 + 25 + 49
    of_index = client.post("/v1/ground", json={"id": name_of("pictures/red.png"), "expression": "the red square"})
    assert (of_index.json()["width"], of_index.json()["height"]) == (24, 24)
    able = {one["name"]: one["available"] for one in client.get("/v1").json()["capabilities"]}
    assert able["ground"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"expression": "x"}, 400),
        ({"expression": "  ", "image": "IMAGE"}, 400),
        ({"expression": "", "image": "IMAGE"}, 422),
        ({"expression": "x", "image": "IMAGE", "id": "y"}, 400),
        ({"expression": "x", "id": name_of("none.png")}, 400),
        ({"expression": "x", "image": "not base64"}, 400),
        ({"expression": "x", "image": "IMAGE", "boxes": []}, 422),
        ({"expression": "x", "image": "IMAGE", "boxes": [[1, 2, 3]]}, 422),
        ({"expression": "x", "image": "IMAGE", "boxes": [[1, 2, 900, 4]]}, 400),
        ({"expression": "x", "image": "IMAGE", "boxes": [[9, 9, 1, 1]]}, 400),
        ({"expression": "x", "image": "IMAGE", "boxes": [["a", 9, 1, 1]]}, 422),
        ({"expression": "x", "image": "IMAGE", "k": 0}, 422),
    ],
)
def test_a_mistake_is_a_4xx_that_says_what_it_is(client: TestClient, body: dict[str, Any], status: int) -> None:
    if body.get("image") == "IMAGE":
        body = body | {"image": encoded()}
    answer = client.post("/v1/ground", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
