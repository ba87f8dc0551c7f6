"""Exported models: the graphs give what PyTorch gives, int8 stays where it is faster, damage is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import SENTENCES, shake, tiny_config

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from mmbert import MMBert, MMBertForPreTraining, MMBertProcessor
from mmbert.api import export, export_measures
from mmbert.api.export import export_model, exported_in_passing
from mmbert.api.export_measures import Probe, distances
from mmbert.api.exported import ExportedMMBert, parts
from mmbert.api.loading import find_model
from mmbert.api.runtimes import filled
from mmbert.errors import CheckpointError, MMBertError, UsageError
from mmbert.model.modeling import build_vision
from mmbert.model.packed import SequenceSpec


@pytest.fixture(scope="session")
def folder(bert: MMBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "onnx"
    export_model(bert, out, measure=False)
    return out


@pytest.fixture(scope="session")
def exported(folder: Path) -> ExportedMMBert:
    model = MMBert.from_pretrained(folder)
    assert isinstance(model, ExportedMMBert)
    return model


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity and speed from few inputs."""
    monkeypatch.setattr(export_measures, "IMAGES", 3)
    monkeypatch.setattr(export_measures, "CAPTIONS", 2)
    monkeypatch.setattr(export_measures, "ROUNDS", 1)


def test_texts_have_the_same_vectors(bert: MMBert, exported: ExportedMMBert) -> None:
    found = exported.encode_text(SENTENCES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, bert.encode_text(SENTENCES), atol=1e-5)


@pytest.mark.parametrize("views", [1, 2])
def test_images_have_the_same_vectors(bert: MMBert, exported: ExportedMMBert, pictures: list[Path], views: int) -> None:
    expected = bert.encode_images(pictures, views=views)
    np.testing.assert_allclose(exported.encode_images(pictures, views=views, batch_size=2), expected, atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, len(SENTENCES) - 1)), min_size=1, max_size=12),
    batch_tokens=st.integers(1, 200),
)
def test_pairs_of_any_lengths_have_the_same_logits(
    bert: MMBert, exported: ExportedMMBert, pictures: list[Path], pairs: list[tuple[int, int]], batch_tokens: int
) -> None:
    chosen = np.array(pairs)
    expected = bert.match_pairs(pictures, SENTENCES, chosen)
    found = exported.match_pairs(pictures, SENTENCES, chosen, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_probabilities_and_kept_regions(bert: MMBert, exported: ExportedMMBert, pictures: list[Path]) -> None:
    np.testing.assert_allclose(exported.match(pictures, SENTENCES), bert.match(pictures, SENTENCES), atol=1e-5)
    kept, pairs = bert.region_vectors(pictures), np.array([[0, 1], [4, 2]])
    for mine, theirs in zip(exported.region_vectors(pictures), kept, strict=True):
        np.testing.assert_allclose(mine.vectors, theirs.vectors, atol=2e-3)  # half precision
    expected = bert.match_pairs(kept, SENTENCES, pairs)
    np.testing.assert_allclose(exported.match_pairs(kept, SENTENCES, pairs), expected, atol=1e-4)


def test_what_search_asks_of_a_model(bert: MMBert, exported: ExportedMMBert) -> None:
    vectors = bert.encode_text(SENTENCES)
    np.testing.assert_allclose(exported.hubness(vectors), bert.hubness(vectors), atol=1e-6)
    for name in ("fingerprint", "embedding_size", "logit_scale", "rerank_weight", "rerank_views", "hub_weight"):
        assert getattr(exported, name) == getattr(bert, name)


def test_nothing_asked_gives_no_rows(exported: ExportedMMBert, pictures: list[Path]) -> None:
    assert exported.encode_text([]).shape == (0, 8)
    assert exported.encode_images([]).shape == (0, 8)
    assert exported.match(pictures, []).shape == (5, 0)


def test_other_networks_and_stored_regions(tmp_path: Path, bert: MMBert, few: None) -> None:
    tokenizer = bert.processor.tokenizer
    config = tiny_config(vocab_size=len(tokenizer), pooling="product", match_outputs=2, visual_ln=False, visual_size=12)
    model = MMBertForPreTraining(config)
    shake(model, 4)
    about = export_model(MMBert(model, MMBertProcessor(tokenizer, config)), tmp_path / "out")
    assert list(about.graphs["regions"].inputs) == ["features", "boxes", "sizes"]
    for name, graph in about.graphs.items():  # measured against PyTorch, on regions in different numbers
        assert graph.parity is not None and graph.parity["max_abs"] < 1e-4, name
        assert graph.parity["agreement"] > 0.9999, name
        assert graph.seconds is not None
        assert set(graph.seconds["1"]) == {"pytorch", "fp32"}
    assert MMBert.from_pretrained(tmp_path / "out").encode_text("a dog").shape == (1, 8)


def test_a_backbone_like_the_starters(tmp_path: Path, bert: MMBert, pictures: list[Path]) -> None:
    tokenizer = bert.processor.tokenizer
    vision = {
        "kind": "grid",
        "backbone": "tf_efficientnet_lite0",
        "image_size": 64,
        "levels": [3, 4],
        "fold_norm": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(vocab_size=len(tokenizer), vision=vision, region_feature_size=1712, num_region_classes=0)
        model = MMBertForPreTraining(config)
    own = MMBert(model, MMBertProcessor(tokenizer, config, model.trunk.vision))
    export_model(own, tmp_path / "out", measure=False)  # padding follows the image's size, levels are averaged
    made = MMBert.from_pretrained(tmp_path / "out")
    for count in (1, 3, 5):
        expected = own.encode_images(pictures[:count])
        np.testing.assert_allclose(made.encode_images(pictures[:count]), expected, atol=1e-4)


def test_a_model_without_embeddings_only_judges_pairs(tmp_path: Path, bert: MMBert) -> None:
    tokenizer = bert.processor.tokenizer
    config = tiny_config(vocab_size=len(tokenizer), embedding_size=0)
    about = export_model(
        MMBert(MMBertForPreTraining(config), MMBertProcessor(tokenizer, config)), tmp_path / "out", measure=False
    )
    assert set(about.graphs) == {"regions", "match"}
    with pytest.raises(UsageError, match="makes no embeddings"):
        MMBert.from_pretrained(tmp_path / "out").encode_text("a dog")


# -- int8 -----------------------------------------------------------------------------------------------------------


def faster(quick: set[str]) -> Callable[..., dict[str, dict[str, float]]]:
    """In the place of a clock: int8 is faster for these graphs."""

    def seconds(self: Probe, bert: MMBert, models: Any, names: list[str], threads: int) -> dict[str, dict[str, float]]:
        return {name: {"pytorch": 3.0, "fp32": 2.0, "int8": 1.0 if name in quick else 2.5} for name in names}

    return seconds


def test_int8_is_kept_where_it_is_faster(
    tmp_path: Path, bert: MMBert, pictures: list[Path], few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "seconds", faster({"text", "match"}))
    monkeypatch.setattr(export, "CLOSEST", 0.9)
    about = export_model(bert, tmp_path / "out", int8=True)
    assert {name: graph.precision for name, graph in about.graphs.items()} == {
        "text": "int8", "regions": "fp32", "image": "fp32", "match": "int8"
    }  # fmt: skip
    assert about.graphs["image"].note == "kept in fp32: int8 was slower here"
    made = MMBert.from_pretrained(tmp_path / "out")
    expected = bert.encode_images(pictures)
    np.testing.assert_allclose(made.encode_images(pictures), expected, atol=1e-5)  # fp32 as it was
    texts = bert.encode_text(SENTENCES)
    found = made.encode_text(SENTENCES)
    assert 1e-5 < np.abs(found - texts).max() < 0.1  # it is another precision, and close
    assert (found * texts).sum(1).min() > 0.99
    logits = made.match_pairs(pictures, SENTENCES, np.array([[0, 1], [4, 2], [2, 7]]))
    np.testing.assert_allclose(
        logits, bert.match_pairs(pictures, SENTENCES, np.array([[0, 1], [4, 2], [2, 7]])), atol=0.3
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"text.onnx", "regions.onnx", "image.onnx", "match.onnx", "export.json", "tokenizer.json"} <= files
    assert not [name for name in files if name.startswith(".")]


def test_int8_is_not_kept_where_it_agrees_too_little(
    tmp_path: Path, bert: MMBert, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "seconds", faster({"text", "image", "match"}))
    monkeypatch.setattr(export, "CLOSEST", 1.01)
    about = export_model(bert, tmp_path / "out", int8=True)
    for name in ("text", "image", "match"):
        assert about.graphs[name].precision == "fp32"
        assert "agrees by" in str(about.graphs[name].note)
    np.testing.assert_allclose(
        MMBert.from_pretrained(tmp_path / "out").encode_text(SENTENCES), bert.encode_text(SENTENCES), atol=1e-5
    )


def test_times_are_measured_for_each_model(bert: MMBert, folder: Path, few: None) -> None:
    probe, before = Probe(bert), torch.get_num_threads()
    found = probe.seconds(
        bert, {"fp32": lambda threads: ExportedMMBert.from_exported(folder, threads=threads)}, ["text"], 2
    )
    assert set(found["text"]) == {"pytorch", "fp32"}
    assert all(seconds > 0 for seconds in found["text"].values())
    assert torch.get_num_threads() == before


def test_distances() -> None:
    one = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert distances(one, one) == {"max_abs": 0, "relative": 0, "agreement": 1}
    off = distances(one, np.array([[3.0, 4.0], [0.0, 1.0]]))
    assert off == {"max_abs": 1, "relative": 0.25, "agreement": 0}
    assert distances(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))["agreement"] == -1


# -- batches of graphs ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 100))
def test_parts_are_neighbours_that_fit(lengths: list[int], limit: int) -> None:
    specs = [SequenceSpec(np.full(length, i), end=False) for i, length in enumerate(lengths)]
    found = list(parts(specs, limit))
    assert [spec for part in found for spec in part] == specs
    for part in found:
        assert len(part) == 1 or len(part) * max(map(len, part)) <= limit


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_filled_rows_come_back(rows: list[list[int]]) -> None:
    values, mask = filled([np.array(row) for row in rows])
    assert [list(row[seen == 1]) for row, seen in zip(values, mask, strict=True)] == rows


# -- OpenVINO -------------------------------------------------------------------------------------------------------


def test_openvino_gives_the_same(bert: MMBert, pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    export_model(bert, tmp_path / "out", format="openvino", measure=False)
    assert not list((tmp_path / "out").glob("*.onnx"))
    made = MMBert.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(made.encode_text(SENTENCES), bert.encode_text(SENTENCES), atol=1e-4)
    np.testing.assert_allclose(made.encode_images(pictures), bert.encode_images(pictures), atol=1e-4)
    np.testing.assert_allclose(made.match(pictures, SENTENCES), bert.match(pictures, SENTENCES), atol=1e-4)


# -- what cannot be -------------------------------------------------------------------------------------------------


def test_what_needs_the_network_says_so(bert: MMBert, exported: ExportedMMBert, pictures: list[Path]) -> None:
    asked: list[Callable[[], object]] = [
        lambda: exported.ground(pictures[0], "a dog"),
        lambda: exported.first_states(["a dog"]),
        lambda: exported.save_pretrained("somewhere"),
    ]
    for ask in asked:
        with pytest.raises(UsageError):
            ask()
    with pytest.raises(UsageError, match="needs the PyTorch network") as caught:
        exported.first_states(["a dog"])
    assert "the model that was exported" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "unknown format"),
        ({"format": "openvino", "int8": True}, "ONNX Runtime alone"),
        ({"int8": True, "measure": False}, "has to be measured"),
    ],
)
def test_options_that_do_not_go_together(bert: MMBert, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(bert, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported(bert: MMBert, exported: ExportedMMBert, tmp_path: Path) -> None:
    tokenizer = bert.processor.tokenizer

    def made(**changes: Any) -> MMBert:
        config = tiny_config(vocab_size=len(tokenizer), **changes)
        model = MMBertForPreTraining(config)
        return MMBert(model, MMBertProcessor(tokenizer, config, model.trunk.vision))

    vision = {"kind": "grid", "backbone": "test_vit", "image_size": 64, "given_boxes": "align"}
    size = build_vision(vision).feature_size
    with pytest.raises(UsageError, match="looks into boxes"):
        export_model(made(vision=vision, region_feature_size=size, num_region_classes=0), tmp_path / "out")
    with pytest.raises(UsageError, match="nothing to export"):
        export_model(made(embedding_size=0, match_outputs=0), tmp_path / "out")
    with pytest.raises(UsageError, match="needs the PyTorch network"):
        export_model(exported, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(bert: MMBert, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export_model(bert, tmp_path, measure=False)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_missing_runtime_is_named(
    folder: Path, bert: MMBert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for ask in (lambda: MMBert.from_pretrained(folder), lambda: export_model(bert, tmp_path / "out")):
        with pytest.raises(UsageError, match="onnxruntime is not installed") as caught:
            ask()
        assert caught.value.hint == "pip install 'mm-bert[export]'"
    assert not list(tmp_path.iterdir())


def damage(folder: Path, what: str) -> None:
    about = json.loads((folder / "export.json").read_text())
    if what == "json":
        (folder / "export.json").write_text("{")
    elif what == "version":
        (folder / "export.json").write_text(json.dumps(about | {"version": 2}))
    elif what == "config":
        (folder / "export.json").write_text(json.dumps(about | {"config": {"hidden_size": "wide"}}))
    elif what == "missing graph":
        (folder / "match.onnx").unlink()
    elif what == "graph":
        (folder / "match.onnx").write_bytes(b"no graph")
    elif what == "head":
        (folder / "embedding_head.safetensors").write_bytes(b"no tensors")
    elif what == "tokenizer":
        (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("json", "export.json"),
        ("version", "version"),
        ("config", "configuration"),
        ("missing graph", "match.onnx is missing"),
        ("graph", "match.onnx"),
        ("head", "embedding_head.safetensors"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_damaged_folders_are_named(folder: Path, tmp_path: Path, what: str, named: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy", what)
    with pytest.raises(CheckpointError) as caught:
        MMBert.from_pretrained(tmp_path / "copy")
    assert named in str(caught.value)


def test_it_is_no_model_to_go_on_training_with(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        find_model(folder)


def test_other_devices_and_dtypes_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="runs on the CPU"):
        MMBert.from_pretrained(folder, device="cuda")
    with pytest.raises(UsageError, match="precision"):
        MMBert.from_pretrained(folder, dtype=torch.bfloat16)


def test_exported_in_passing_leaves_nothing(bert: MMBert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = exported_in_passing(bert, "onnx")
    assert not list(tmp_path.iterdir())
    np.testing.assert_allclose(made.encode_text("a dog"), bert.encode_text("a dog"), atol=1e-5)
    with pytest.raises(MMBertError):
        made.use_regions(None)  # type: ignore[arg-type]
