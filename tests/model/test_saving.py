"""Saving and loading: the same bits come back, and nothing that does not fit is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import shake, tiny_config, tiny_network

from mmbert import MMBert, MMBertForPreTraining, MMBertProcessor
from mmbert.data.packing import collate
from mmbert.errors import CheckpointError
from mmbert.model.modeling import build_vision
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)
TOKENIZER = train_tokenizer(["ein Elefant im Schnee", "un éléphant", "двое собак"] * 4, vocab_size=60)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def grid(backbone: str = "test_vit", **options: Any) -> dict[str, Any]:
    return {"kind": "grid", "backbone": backbone, "image_size": 160} | options


def with_vision(vision: dict[str, Any], **changes: Any) -> MMBert:
    """A model whose every parameter, in the vision encoder too, is random."""
    size = build_vision(vision).feature_size
    config = tiny_config(vision=vision, region_feature_size=size, vocab_size=len(TOKENIZER), **changes)
    model = MMBertForPreTraining(config)
    shake(model, 5)
    return MMBert(model, MMBertProcessor(TOKENIZER, config, model.trunk.vision))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with_vision(grid()).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be spoilt."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def same_bits(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(found, kind)()), dict(getattr(wanted, kind)())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    "vision",
    [
        grid(),
        grid("test_vit_relpos", trainable=True),  # has tables that timm itself does not save
        grid("test_coatnet", levels=[2]),
        grid("test_efficientnet", trainable=True, fold_norm=True),
        grid("test_efficientnet", classes=True),
    ],
    ids=["vit", "relative positions", "levels", "folded", "classes"],
)
def test_everything_comes_back_bit_by_bit(vision: dict[str, Any], tmp_path: Path) -> None:
    before = with_vision(vision)
    before.save_pretrained(tmp_path)
    after = MMBert.from_pretrained(tmp_path, device="cpu")
    same_bits(after.model, before.model)
    place = {"_name_or_path", "dtype"}
    wanted, found = before.config.to_dict(), after.config.to_dict()
    assert {k: v for k, v in found.items() if k not in place} == {k: v for k, v in wanted.items() if k not in place}
    assert not any(m.training for m in after.model.modules())
    texts = ["ein Elefant", "собак"]  # equal weights at other addresses may differ in the last bit of a product
    np.testing.assert_allclose(after.encode_images([IMAGE]), before.encode_images([IMAGE]), atol=1e-6)
    np.testing.assert_allclose(after.encode_text(texts), before.encode_text(texts), atol=1e-6)
    np.testing.assert_allclose(after.match([IMAGE], texts), before.match([IMAGE], texts), atol=1e-6)
    assert after.fingerprint == before.fingerprint
    assert [p.requires_grad for p in after.model.parameters()] == [p.requires_grad for p in before.model.parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {"visual_ln": False},
        {"visual_size": 24, "match_outputs": 2},
        {"word_embedding_frozen": True, "num_special_words": 20},
        {"object_mask_word_embedding": False, "position_embedding_frozen": True, "num_region_classes": 0},
        {"region_regression": False, "embedding_size": 0, "with_mlm_head": False},
    ],
)
def test_every_option_comes_back_too(changes: dict[str, Any], tmp_path: Path) -> None:
    before = tiny_network(9, **changes)
    before.save_pretrained(tmp_path)
    after = MMBertForPreTraining.from_pretrained(tmp_path)
    same_bits(after, before)
    assert [p.requires_grad for p in after.parameters()] == [p.requires_grad for p in before.parameters()]


def test_the_trunk_alone_can_be_loaded_from_a_model_with_heads(saved: Path, broken: Path) -> None:
    from mmbert import MMBertModel

    whole = MMBertForPreTraining.from_pretrained(saved)
    trunk, report = MMBertModel.from_pretrained(saved, output_loading_info=True)
    same_bits(trunk, whole.trunk)
    assert not any(report.values()), "heads left aside are reported as a fault"
    rewrite(broken, lambda w: w.update({"surplus.weight": torch.zeros(2)}))
    _, report = MMBertModel.from_pretrained(broken, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"surplus.weight"}


def test_half_precision_on_disk_is_single_precision_in_memory(tmp_path: Path) -> None:
    before = with_vision(grid("test_efficientnet"))
    before.save_pretrained(tmp_path, dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    assert {p.dtype for p in before.model.parameters()} == {torch.float32}, "saving changed the model"
    after = MMBert.from_pretrained(tmp_path, device="cpu")
    for name, wanted in before.model.state_dict().items():
        found = after.model.state_dict()[name]
        if wanted.is_floating_point():
            assert found.dtype == torch.float32, name
            assert torch.equal(found, wanted.half().float()), name
        else:
            assert torch.equal(found, wanted), name
    half = MMBert.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    cosine = (half.encode_text(["ein Elefant"]) * after.encode_text(["ein Elefant"])).sum()
    assert cosine > 0.99


def test_a_query_bank_is_saved_with_the_model_and_may_be_dropped_again(saved: Path, tmp_path: Path) -> None:
    before = MMBert.from_pretrained(saved, device="cpu")
    vectors = before.encode_images([Image.new("RGB", (20, 20), colour) for colour in ("red", "navy", "white")])
    assert before.hubness(vectors).tolist() == [0.0] * 3
    before.keep_queries(["a dog", "ein Elefant"])
    found = before.hubness(vectors)
    before.save_pretrained(tmp_path)
    after = MMBert.from_pretrained(tmp_path, device="cpu")
    assert after.config.query_bank == 2
    assert found.any()
    np.testing.assert_allclose(after.hubness(vectors), found, atol=1e-6)
    after.keep_queries([])
    assert after.hubness(vectors).tolist() == [0.0] * 3
    after.save_pretrained(tmp_path)
    assert MMBert.from_pretrained(tmp_path, device="cpu").config.query_bank == 0


def test_fingerprints_tell_weights_and_configurations_apart(saved: Path) -> None:
    first, second, third = (MMBert.from_pretrained(saved, device="cpu") for _ in range(3))
    with torch.no_grad():
        second.model.match_head.bias += 1e-3
    third.config.rerank_weight = 0.3
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3


def test_a_fingerprint_does_not_say_where_or_by_which_release_a_model_was_saved(saved: Path, tmp_path: Path) -> None:
    first = MMBert.from_pretrained(saved, device="cpu")
    first.save_pretrained(tmp_path)
    reconfigure(tmp_path, transformers_version="9.9.9")
    assert MMBert.from_pretrained(tmp_path, device="cpu").fingerprint == first.fingerprint


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(folder: Path, *, mentions: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        MMBert.from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert mentions in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_named(broken: Path) -> None:
    rewrite(broken, lambda w: w.pop("trunk.embeddings.end_word"))
    refused(broken, mentions="trunk.embeddings.end_word")


def test_a_weight_too_many_is_named(broken: Path) -> None:
    rewrite(broken, lambda w: w.update({"surplus.weight": torch.zeros(2)}))
    refused(broken, mentions="surplus.weight")


def test_weights_of_a_head_that_the_configuration_leaves_out_are_named(broken: Path) -> None:
    reconfigure(broken, match_outputs=0)
    refused(broken, mentions="match_head.bias, match_head.weight")


def test_a_weight_of_another_shape_is_refused(broken: Path) -> None:
    rewrite(broken, lambda w: w.update({"match_head.weight": torch.zeros(2, 16)}))
    refused(broken, mentions="match_head.weight")


def test_a_configuration_of_another_model_is_refused(broken: Path) -> None:
    reconfigure(broken, num_hidden_layers=3)
    refused(broken, mentions="trunk.encoder.layers.2")


def test_impossible_sizes_are_refused(broken: Path) -> None:
    reconfigure(broken, num_attention_heads=3)
    refused(broken, mentions="num_attention_heads")


def test_regions_of_another_width_than_the_backbones_are_refused(broken: Path) -> None:
    reconfigure(broken, region_feature_size=32)
    refused(broken, mentions="region_feature_size is 32, but the vision encoder gives 64")


def test_truncated_weights_are_refused(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(broken, mentions="cannot load")


def test_empty_weights_are_refused(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"")
    refused(broken, mentions="cannot load")


def test_missing_weights_are_refused(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    refused(broken, mentions="model.safetensors")


def test_pickled_weights_are_not_opened(broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    refused(broken, mentions="cannot load")


def test_a_damaged_configuration_is_refused(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    refused(broken, mentions="config.json")


def test_a_missing_tokenizer_is_refused(broken: Path) -> None:
    for file in broken.glob("tokenizer*"):
        file.unlink()
    refused(broken, mentions="tokenizer")


def test_a_damaged_tokenizer_is_refused(broken: Path) -> None:
    (broken / "tokenizer.json").write_text("{}")
    refused(broken, mentions="tokenizer")


def test_the_tokenizer_of_a_larger_model_is_refused(broken: Path) -> None:
    train_tokenizer([chr(0x4E00 + i) for i in range(200)], vocab_size=300).save_pretrained(broken)
    refused(broken, mentions="word rows")


def test_a_folder_without_configuration_is_no_model(broken: Path) -> None:
    (broken / "config.json").unlink()
    refused(broken, mentions="config.json is missing")


def test_a_name_that_is_nothing_is_an_error_that_lists_the_shipped_models() -> None:
    with pytest.raises(CheckpointError, match="starter"):
        MMBert.from_pretrained("no-such-model")


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match="offline"):
        MMBert.from_pretrained("someone/some-model")


def test_loading_and_saving_write_no_bars_into_a_pipe(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    MMBert.from_pretrained(saved, device="cpu").save_pretrained(tmp_path)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_frozen_encoder_stays_in_eval_mode_after_loading(saved: Path) -> None:
    model = MMBert.from_pretrained(saved, device="cpu").model.train()
    assert not any(m.training for m in model.trunk.vision.backbone.modules())
    assert model.trunk.encoder.training
    texts = collate(MMBert.from_pretrained(saved, device="cpu").processor.text_examples(["ein"]))
    assert model(texts).last_hidden_state.shape[1] == 16
