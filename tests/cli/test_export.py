"""`mmbert export`, and what takes its folder: `mmbert embed`, `mmbert serve --backend`."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from colours import save_folder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from mmbert import MMBert, SearchIndex
from mmbert.api import export_measures
from mmbert.api.export_folder import ExportAbout, GraphAbout
from mmbert.api.exported import ExportedMMBert
from mmbert.cli.main import run
from mmbert.cli.serve import load_served
from mmbert.errors import UsageError


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "exported"
    assert run(["export", "--model", str(model_folder), "--out", str(out), "--no-measure"]) == 0
    return out


def test_the_folder_can_be_given_as_a_model(
    exported: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("ein Elefant\nun éléphant dans la neige\n", "utf-8")
    found = []
    for model in (model_folder, exported):
        assert run(["embed", "--model", str(model), "--text", str(tmp_path / "texts.txt"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    vectors = [np.array([item["vector"] for item in one["items"]]) for one in found]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)


def test_parity_and_speed_are_told_and_kept(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_measures, "IMAGES", 3)
    monkeypatch.setattr(export_measures, "ROUNDS", 1)
    out = tmp_path / "out"
    assert run(["export", "-m", str(model_folder), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    kept = json.loads((out / "export.json").read_text("utf-8"))
    assert [row["graph"] for row in told["graphs"]] == ["text", "regions", "image", "match"] == list(kept["graphs"])
    for row in told["graphs"]:
        assert row["max_abs"] == kept["graphs"][row["graph"]]["parity"]["max_abs"] < 1e-4
        assert row["times_as_fast"]["1"] > 0
    assert kept["preprocessing"]["image"]["size"] == 160
    assert run(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["times_as_fast"] for row in facts["graphs"]] == [row["times_as_fast"] for row in told["graphs"]]
    assert [row["seconds"] for row in facts["graphs"]] == [graph["seconds"] for graph in kept["graphs"].values()]
    assert run(["info", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "match: fp32, off by at most" in printed
    assert f"measured    on {kept['machine']['processor']}" in printed


def test_info_says_what_an_export_is_and_what_its_model_says_of_itself(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    (copy / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: [de, fa]\n---\n# A model\n", "utf-8")
    (copy / "metrics.json").write_text(json.dumps({"evaluation": {"bleu": 12.5}}))
    out = tmp_path / "exported"
    assert run(["export", "-m", str(copy), "-o", str(out), "--no-measure"]) == 0
    capsys.readouterr()
    assert run(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["model"], facts["measured"]) == ("onnx", str(copy), False)
    assert facts["license"] == "cc-by-4.0"
    assert facts["languages"] == ["de", "fa"]
    assert {row["graph"]: row["bytes"] for row in facts["graphs"]} == {
        path.stem: path.stat().st_size for path in out.glob("*.onnx")
    }
    assert facts["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert facts["fingerprint"] == MMBert.from_pretrained(copy).fingerprint
    assert run(["info", str(out)]) == 0
    printed = capsys.readouterr().out
    for part in (
        "exported for ONNX Runtime",
        "no (mmbert export --no-measure)",
        "bleu 12.50",
        "cc-by-4.0",
        "text: fp32",
    ):
        assert part in printed
    (out / "text.onnx").unlink()
    assert run(["info", str(out)]) == 2
    assert "text.onnx is missing" in capsys.readouterr().err


def test_info_of_a_graph_with_weights_beside_it_and_one_kept_in_fp32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenVINO's form of a graph, by its files alone."""
    graph = GraphAbout(
        inputs={"input_ids": ("texts", "tokens")},
        parity={"max_abs": 0.25, "relative": 0.25, "agreement": 0.975},
        seconds={"1": {"pytorch": 0.3, "fp32": 0.2}, "2": {"pytorch": 0.2, "fp32": 0.2}},
        note="kept in fp32: int8 was slower here",
    )
    about = ExportAbout(
        format="openvino", model="starter", fingerprint="abc", config={"hidden_size": 8}, preprocessing={},
        graphs={"text": graph},
        machine={"processor": "a chip", "vnni": False, "cores": 2, "packages": {"openvino": "1"}},
    )  # fmt: skip
    about.write(tmp_path)
    (tmp_path / "text.xml").write_bytes(b"x" * 500)
    (tmp_path / "text.bin").write_bytes(b"x" * 1500)
    assert run(["info", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == (
        "graphs      text: fp32, off by at most 0.25 (agreement 0.97500), 1.5 times as fast as PyTorch with 1 thread, "
        "1 with 2, 2.0 KB"
    )
    assert lines[4].strip() == "kept in fp32: int8 was slower here"
    assert lines[5] == "measured    on a chip, without VNNI, 2 cores, openvino 1"
    for damaged in ({"parity": {"max_abs": 1.0}}, {"seconds": {}}, {"seconds": {"1": {"pytorch": 1.0}}}):
        about.model_copy(update={"graphs": {"text": graph.model_copy(update=damaged)}}).write(tmp_path)
        assert run(["info", str(tmp_path)]) == 2
        assert re.search("damaged, or of another version: graphs.text: (parity|seconds) ", capsys.readouterr().err)


def test_mistakes_are_told(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--model", str(exported), "--out", str(tmp_path / "again")]) == 2
    assert "needs the PyTorch network" in capsys.readouterr().err
    assert run(["export", "--format", "tflite", "--out", str(tmp_path / "out")]) == 2
    assert "onnx, openvino" in capsys.readouterr().err
    assert run(["embed", "--model", str(exported), "--device", "meta", "--text", "-"]) == 2
    with pytest.raises(UsageError, match="the precision that it was exported with"):
        MMBert.from_pretrained(exported, int8=True)
    assert not list(tmp_path.iterdir())


def test_the_backend_of_a_service(exported: Path, model_folder: Path) -> None:
    assert isinstance(load_served(str(exported), None, None), ExportedMMBert)
    assert isinstance(load_served(str(exported), "onnx", None), ExportedMMBert)
    assert not isinstance(load_served(str(model_folder), "torch", None), ExportedMMBert)
    made = load_served(str(model_folder), "onnx", None)
    assert isinstance(made, ExportedMMBert) and made.name_or_path == str(model_folder)
    for name, backend in ((exported, "torch"), (exported, "openvino")):
        with pytest.raises(UsageError, match="was made for onnx") as caught:
            load_served(str(name), backend, None)
        assert str(model_folder) in str(caught.value.hint)
    with pytest.raises(UsageError, match="unknown backend"):
        load_served(str(model_folder), "tensorrt", None)
    with pytest.raises(UsageError, match="on the CPU"):
        load_served(str(model_folder), "onnx", "cuda")
    with pytest.raises(UsageError, match="for PyTorch, not for onnx"):
        load_served(str(model_folder), "onnx", None, int8=True)


def test_a_service_of_graphs(exported: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from mmbert.search.index import build_index
    from mmbert.search.service.app import make_app
    from mmbert.search.service.core import Service
    from mmbert.search.service.offers import Further, offers_of

    save_folder(tmp_path / "photos", 4)
    bert = MMBert.from_pretrained(model_folder)
    build_index(bert, tmp_path / "photos", tmp_path / "index")
    served = load_served(str(exported), "onnx", None)
    index = SearchIndex.open(tmp_path / "index", served)  # which PyTorch's model made
    image = base64.b64encode((tmp_path / "photos/red.png").read_bytes()).decode()
    with TestClient(make_app(Service(index)), raise_server_exceptions=False) as client:
        found = client.post("/v1/embed", json={"texts": ["ein Elefant"], "images": [image]}).json()
        np.testing.assert_allclose(found["texts"], bert.encode_text("ein Elefant"), atol=1e-5)
        np.testing.assert_allclose(found["images"], bert.encode_images(tmp_path / "photos/red.png"), atol=1e-5)
        judged = client.post("/v1/match", json={"texts": ["ein Elefant"], "images": [image]}).json()
        expected = bert.match(tmp_path / "photos/red.png", "ein Elefant")
        np.testing.assert_allclose(judged["probabilities"], expected, atol=1e-5)
        hits = client.post("/v1/search", json={"text": "ein Elefant", "k": 3, "rerank": 2}).json()["hits"]
        own = SearchIndex.open(tmp_path / "index", bert).search("ein Elefant", k=3, rerank=2)
        assert [hit["name"] for hit in hits] == [hit.image.key for hit in own if hit.image]
        for path, body in (
            ("attention", {"text": "a", "image": image}),
            ("answer", {"question": "a", "image": image}),
            ("ground", {"expression": "a", "image": image}),
            ("caption", {"to": "de", "image": image}),
            ("translate", {"to": "de", "texts": ["a"]}),
        ):
            refused = client.post(f"/v1/{path}", json=body)
            assert refused.status_code == 501
            assert "--backend torch" in refused.json()["error"]["message"]
        able = {one["name"]: one["available"] for one in client.get("/v1").json()["capabilities"]}
        assert able == {
            "answer": False, "attention": False, "caption": False, "embed": True, "ground": False, "match": True,
            "search": True, "translate": False,
        }  # fmt: skip
    beside = {offer.name: offer.model for offer in offers_of(served, [Further(bert)])}
    assert beside["attention"] is bert
    assert beside["embed"] is served
