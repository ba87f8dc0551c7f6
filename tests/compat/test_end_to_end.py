"""Checkpoints of networks with a backbone: read, written back, told apart, and started from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import (
    SMALL,
    choice_settings,
    choice_shapes,
    pretraining_shapes,
    resnet_shapes,
    resnet_state,
    settings,
    write_checkpoint,
    write_yaml,
)
from starts import small_bert, start
from torch import Tensor

from mmbert import MMBertForMultipleChoice
from mmbert.compat.configs import LegacySettings, plan_from_tensors, plan_from_yaml
from mmbert.compat.convert import convert, convert_back
from mmbert.compat.recipes import starts
from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.configuration import MMBertConfig
from mmbert.training.initialisation import InitReport

torch.set_num_threads(1)
LAST, AGAIN = "image_feature_extractor.roi_head_feature_extractor.", "image_feature_extractor.head.0."


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A VCR checkpoint."""
    state = resnet_state(choice_shapes())
    return write_checkpoint(tmp_path_factory.mktemp("choice") / "vcr.model", state), state


def test_a_multiple_choice_network_comes_and_goes_bit_by_bit(
    choice: tuple[Path, dict[str, Tensor]], words: Path, tmp_path: Path
) -> None:
    path, state = choice
    config = write_yaml(words.parent / "vcr.yaml", choice_settings())
    report = convert(path, tmp_path / "out", config=config, tokenizer=words)
    assert report.task == "multiple-choice"
    assert not report.missing + report.leftover
    model = MMBertForMultipleChoice.from_pretrained(tmp_path / "out")
    found = model.state_dict()
    assert torch.equal(found["trunk.vision.conv1.weight"], state["image_feature_extractor.backbone.conv1.weight"])
    assert torch.equal(found["trunk.vision.layer4.0.conv2.weight"], state[f"{AGAIN}0.conv2.weight"])
    assert found["trunk.vision.layer2.0.bn1.num_batches_tracked"] == 7
    assert torch.equal(found["heads.choice.predictor.bias"], state["final_mlp.1.bias"])
    assert torch.equal(found["heads.region_class.dense.weight"], state["cnn_loss_reg.0.dense.weight"])
    vision = model.trunk.vision
    assert (vision.short_side, vision.long_side, vision.blanks_hidden) == (600, 1200, False)
    learns = {name for name, parameter in vision.named_parameters() if parameter.requires_grad}
    assert learns == {
        f"layer{n}.0.{part}.weight" for n in (2, 3, 4) for part in ("conv1", "conv2", "conv3", "downsample.0")
    }
    convert_back(tmp_path / "out", tmp_path / "back.model")
    assert same(torch.load(tmp_path / "back.model", weights_only=True)["state_dict"], state)


def test_without_a_record_it_is_written_under_the_usual_names(
    choice: tuple[Path, dict[str, Tensor]], words: Path, tmp_path: Path
) -> None:
    path, state = choice
    convert(path, tmp_path / "out", task="vcr", tokenizer=words, settings={"num_attention_heads": 2})
    (tmp_path / "out" / "conversion.json").unlink()
    convert_back(tmp_path / "out", tmp_path / "back.model")
    back = torch.load(tmp_path / "back.model", weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("classes", ["top", "feature", "not"])
def test_what_classifies_regions_is_told_by_settings_and_by_tensors(classes: str, tmp_path: Path) -> None:
    shapes = {key.replace("._module", ""): shape for key, shape in choice_shapes(classes=classes).items()}
    config = plan_from_yaml(write_yaml(tmp_path / "c.yaml", choice_settings(classes=classes)), shapes).config
    wanted = {
        "top": {"region_class": {"kind": "transform", "outputs": 81, "dropout": 0.0}},
        "feature": {"feature_class": {"kind": "linear", "outputs": 81, "input_size": 2048}},
        "not": {},
    }[classes]
    assert config.heads == {"choice": {"kind": "linear", "outputs": 1, "dropout": 0.1}} | wanted

    told = plan_from_tensors(shapes, "vcr").config
    assert set(told.heads) == set(config.heads)
    assert {key: told.vision[key] for key in ("kind", "layers", "blank_hidden")} == {
        key: config.vision[key] for key in ("kind", "layers", "blank_hidden")
    }


def test_pretraining_from_pixels_comes_and_goes(words: Path, tmp_path: Path) -> None:
    shapes = pretraining_shapes(SMALL) | resnet_shapes()
    del shapes["object_mask_visual_embedding.weight"]  # hidden regions are blanked in the pixels
    state = resnet_state(shapes)
    path = write_checkpoint(tmp_path / "p.model", state)
    content = settings(IMAGE_FEAT_PRECOMPUTED=False, IMAGE_NUM_LAYERS=14, IMAGE_C5_DILATED=True, MASK_RAW_PIXELS=True)
    convert(path, tmp_path / "out", config=write_yaml(tmp_path / "p.yaml", content), tokenizer=words)
    config = MMBertConfig.from_pretrained(tmp_path / "out")
    assert config.vision["blank_hidden"] is True
    assert config.region_mask_feature is False
    convert_back(tmp_path / "out", tmp_path / "back.model")
    assert same(torch.load(tmp_path / "back.model", weights_only=True)["state_dict"], state)


def test_a_last_stage_that_differs_from_its_second_name_is_refused(
    choice: tuple[Path, dict[str, Tensor]], words: Path, tmp_path: Path
) -> None:
    _, state = choice
    key = f"{AGAIN}0.conv1.weight"
    path = write_checkpoint(tmp_path / "v.model", state | {key: state[key] + 1})
    with pytest.raises(CheckpointError, match="two names of one tensor"):
        convert(path, tmp_path / "out", task="vcr", tokenizer=words)


def test_a_backbone_of_unknown_depth_is_refused(words: Path, tmp_path: Path) -> None:
    state = resnet_state(choice_shapes())
    extra = {
        key.replace("layer3.0", f"layer3.{n}"): value
        for n in (1, 2)
        for key, value in state.items()
        if "layer3.0" in key
    }
    path = write_checkpoint(tmp_path / "v.model", state | extra)
    with pytest.raises(CheckpointError, match="3 blocks in its third stage"):
        convert(path, tmp_path / "out", task="vcr", tokenizer=words)


def test_other_classifiers_of_choices(tmp_path: Path) -> None:
    content = choice_settings()
    content["NETWORK"] |= {"CLASSIFIER_TYPE": "2fc", "CLASSIFIER_HIDDEN_SIZE": 12}
    head = plan_from_yaml(write_yaml(tmp_path / "c.yaml", content), {}).config.heads["choice"]
    assert head == {"kind": "two_layer", "hidden_size": 12, "outputs": 1, "dropout": 0.1}
    content["NETWORK"]["CLASSIFIER_TYPE"] = "mlm"
    with pytest.raises(ConfigError, match="not supported with VCR"):
        plan_from_yaml(write_yaml(tmp_path / "c.yaml", content), {})


# -- starting to fine-tune ---------------------------------------------------------------------------------------------


def test_where_the_heads_of_vcr_start_is_read_from_its_settings(tmp_path: Path) -> None:
    content = choice_settings()
    content["NETWORK"] |= {
        "PARTIAL_PRETRAIN_PREFIX_CHANGES": [
            "vlbert.mvrc_head.transform->cnn_loss_reg.0",
            "module.vlbert.mvrc_head.transform->module.cnn_loss_reg.0",
            "module.vlbert->module.vlbert._module",
            "vlbert->vlbert._module",
        ],
        "PARTIAL_PRETRAIN_SEGMB_INIT": True,
        "LOAD_REL_HEAD": True,
    }
    config = plan_from_yaml(write_yaml(tmp_path / "c.yaml", content), {}).config
    assert starts(LegacySettings(content), config) == {
        "heads": {"region_class": {"transform": "region_head"}, "choice": {"match": True}},
        "segments": {1: 0},
    }


def test_vcr_starts_from_a_pretrained_network_and_its_backbone(tmp_path: Path) -> None:
    """cnn_loss_reg.0 is the MVRC transform, final_mlp.1 the difference of the match head's rows, segment 1 is 0."""
    shapes = pretraining_shapes(SMALL, match=2) | resnet_shapes()
    state = resnet_state(shapes)
    path = write_checkpoint(tmp_path / "p.model", state)
    own = {
        key.removeprefix("image_feature_extractor.backbone."): value + 1 if value.is_floating_point() else value
        for key, value in state.items()
        if key.startswith("image_feature_extractor.backbone.")
    }
    own |= {key.replace(LAST, "layer4."): value + 1 for key, value in state.items() if key.startswith(LAST)}
    torch.save(own | {"fc.weight": torch.zeros(2, 2)}, tmp_path / "backbone.pth")
    small_bert(tmp_path / "bert")
    config: dict[str, Any] = {
        "vision": {"kind": "resnet", "layers": 14},
        "heads": {
            "choice": {"kind": "linear", "outputs": 1},
            "region_class": {"kind": "transform", "outputs": 81},
        },
        "match_outputs": 0, "num_region_classes": 0, "with_mlm_head": False,
    }  # fmt: skip
    heads = {"choice": {"match": True}, "region_class": {"transform": "region_head"}}
    init = {"text": str(tmp_path / "bert"), "model": str(path), "heads": heads, "segments": {1: 0}}
    report = InitReport()
    model = start(init, report, config=config, backbone_weights=str(tmp_path / "backbone.pth")).model
    relation = "vlbert.relationsip_head.caption_image_relationship."
    for part in ("weight", "bias"):
        rows = state[f"{relation}{part}"]
        assert torch.equal(getattr(model.heads["choice"].predictor, part), rows[1:] - rows[:1])
        ours = getattr(model.heads["region_class"].dense, part)
        assert torch.equal(ours, state[f"vlbert.mvrc_head.transform.dense.{part}"])
    segments = model.trunk.embeddings.segments.weight
    assert torch.equal(segments[1], segments[0])
    conv = "image_feature_extractor.backbone.layer1.0.conv1.weight"
    assert torch.equal(model.trunk.vision.layer1[0].conv1.weight, state[conv]), "the whole network's own wins"
    assert conv in report.used[str(path)]
    assert report.used[str(tmp_path / "backbone.pth")] == []
    assert "fc.weight" in report.left[str(tmp_path / "backbone.pth")]
    without = {
        key: value for key, value in state.items() if "backbone" not in key and LAST not in key and AGAIN not in key
    }
    write_checkpoint(tmp_path / "prec.model", without)
    init["model"], report = str(tmp_path / "prec.model"), InitReport()
    model = start(init, report, config=config, backbone_weights=str(tmp_path / "backbone.pth")).model
    assert torch.equal(model.trunk.vision.layer1[0].conv1.weight, own["layer1.0.conv1.weight"])
    assert report.left[str(tmp_path / "backbone.pth")] == ["fc.weight"]
    assert not any(name.startswith("trunk.vision") for name in report.fresh)
    assert json.dumps(report.content())
