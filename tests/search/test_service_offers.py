"""Which model answers which question: the index's own first, further ones for what it cannot, named ones for theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from answered import answering_model
from colours import ColourModel
from grounded import grounding_model
from written import writing_model

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mmbert import MMBert
from mmbert.cli.main import run
from mmbert.errors import UsageError
from mmbert.search.index import SearchIndex, build_index
from mmbert.search.service.app import make_app
from mmbert.search.service.core import Service, name_of
from mmbert.search.service.offers import Further, name_of_model, offers_of, read_further

OWN = ColourModel()


def named(bert: MMBert, name: str) -> MMBert:
    bert.name_or_path = name
    return bert


@pytest.fixture(scope="module")
def answering() -> MMBert:
    return named(answering_model(), "/somewhere/runs/vqa/best")


@pytest.fixture(scope="module")
def writing() -> MMBert:
    return named(writing_model(), "/somewhere/captions")


@pytest.fixture(scope="module")
def blind() -> MMBert:
    return named(writing_model(vision=None), "/somewhere/mt")


def who(*further: Further) -> dict[str, Any]:
    return {offer.name: offer.model for offer in offers_of(OWN, further)}


def test_a_further_model_answers_what_no_model_before_it_can(answering: MMBert, writing: MMBert, blind: MMBert) -> None:
    alone = who()
    assert (alone["search"], alone["match"], alone["answer"], alone["caption"]) == (OWN, OWN, None, None)
    found = who(Further(answering), Further(blind), Further(writing))
    assert (found["search"], found["embed"], found["match"]) == (OWN, OWN, OWN)
    assert (found["answer"], found["attention"]) == (answering, answering)
    assert (found["translate"], found["caption"]) == (blind, writing)  # the first that can, and the only one that sees
    assert found["ground"] is None


def test_a_model_that_is_named_for_questions_answers_them_and_no_others(
    answering: MMBert, writing: MMBert, blind: MMBert
) -> None:
    found = who(Further(writing), Further(blind, ("translate",)), Further(answering, ("match", "answer")))
    assert (found["caption"], found["attention"]) == (writing, writing)
    assert (found["translate"], found["match"], found["answer"]) == (blind, answering, answering)


def test_mistakes_are_told(answering: MMBert, writing: MMBert, blind: MMBert) -> None:
    with pytest.raises(UsageError, match="adds nothing") as caught:
        who(Further(writing), Further(blind))
    assert caught.value.hint == "it can embed, translate; to prefer it for some, name them: --also embed=/somewhere/mt"
    with pytest.raises(UsageError, match="cannot answer ground: this model does not ground"):
        who(Further(answering, ("ground",)))
    with pytest.raises(UsageError, match="and by no other"):
        who(Further(answering, ("search",)))
    with pytest.raises(UsageError, match="two models are to answer caption"):
        who(Further(writing, ("caption",)), Further(writing_model(), ("caption",)))


def test_what_the_command_line_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_further("runs/vqa/best") == ((), "runs/vqa/best")
    assert read_further("caption, translate=runs/mt") == (("caption", "translate"), "runs/mt")
    (tmp_path / "lr=0.1").mkdir()
    assert read_further(str(tmp_path / "lr=0.1")) == ((), str(tmp_path / "lr=0.1"))
    with pytest.raises(UsageError, match="no question 'ansver'") as caught:
        read_further("ansver=runs/vqa/best")
    assert caught.value.hint == "did you mean 'answer'?"
    with pytest.raises(UsageError, match="which model"):
        read_further("answer=")
    assert run(["serve", "--also", "ansver=runs/vqa/best"]) == 2  # before anything is loaded
    assert "hint: did you mean 'answer'?" in capsys.readouterr().err


def test_that_8_bits_are_no_use_is_told_once_however_many_models_serve(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other, index = str(tmp_path / "vqa"), str(tmp_path / "grounding"), str(tmp_path / "index")
    answering_model().save_pretrained(own)
    grounding_model().save_pretrained(other)
    build_index(MMBert.from_pretrained(own), folder, tmp_path / "index", model_name=own)
    monkeypatch.setattr("mmbert.model.int8.int8_is_faster", lambda: False)
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    # It closes the handlers of the process, and absl's (TensorBoard brings it) its stream, which may be pytest's.
    monkeypatch.setattr("logging.config.dictConfig", lambda settings: None)
    assert run(["serve", "--index", index, "--port", "0", "--device", "cpu", "--int8", "--also", other]) == 0
    said = capsys.readouterr().err
    assert said.count("--int8 is left out") == 1
    assert "grounding answers ground" in said
    assert "12 images; http" in said
    assert said.index("loading") < said.index("12 images")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/a/runs/vqa/best", "vqa/best"),
        ("/home/a/mt", "mt"),
        ("starter", "starter"),
        ("best", "best"),
        (None, None),
    ],
)
def test_models_are_called_without_their_folders(name: str | None, shown: str | None) -> None:
    assert name_of_model(name) == shown


def test_the_service_says_who_answers_and_knows_images_of_the_index(folder: Path, out: Path, answering: MMBert) -> None:
    build_index(OWN, folder, out)
    service = Service(SearchIndex.open(out, OWN), further=[Further(answering), Further(grounding_model())])
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        able = {one["name"]: one["model"] for one in client.get("/v1").json()["capabilities"] if one["available"]}
        assert able["search"] == "colours"
        assert able["answer"] == able["attention"] == "vqa/best"
        assert "caption" not in able
        asked = {"id": name_of("pictures/red.png"), "question": "what is left?", "k": 2}
        found = client.post("/v1/answer", json=asked).json()["answers"]
        own = answering.answer(folder / "pictures/red.png", "what is left?", k=2)
        assert [one["answer"] for one in found] == [one.text for one in own]
        hits = client.post("/v1/search", json={"text": "rot", "k": 1}).json()["hits"]
        assert hits[0]["name"] == "pictures/red.png"
        refused = client.post("/v1/caption", json={"id": name_of("pictures/red.png"), "to": "de"})
        assert refused.status_code == 501
