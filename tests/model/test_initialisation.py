"""Where a fresh model starts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny import tiny_config
from torch import nn

from mmbert.errors import ConfigError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining, MMBertModel, build_vision, parameter_count


def fresh(**changes: object) -> MMBertForPreTraining:
    torch.manual_seed(0)
    return MMBertForPreTraining(tiny_config(**changes))


@pytest.mark.parametrize(("text", "region"), [(0.0, 0.0), (1.0, 0.25), (0, 1)])
def test_visual_norms_start_with_their_configured_weight(text: float, region: float) -> None:
    embeddings = fresh(visual_scale_text_init=text, visual_scale_object_init=region).trunk.embeddings
    for part, scale in ((embeddings.text_visual, text), (embeddings.object_visual, region)):
        assert part.norm.weight.tolist() == [scale] * 16
        assert part.norm.bias.abs().sum() == 0
        assert part.scale is None


def test_without_norms_the_scalars_start_there() -> None:
    embeddings = fresh(visual_ln=False, visual_scale_text_init=0.5, visual_scale_object_init=2).trunk.embeddings
    assert embeddings.text_visual.scale.item() == 0.5
    assert embeddings.object_visual.scale.item() == 2.0
    assert embeddings.text_visual.norm is None


def test_a_projection_exists_only_where_sizes_differ() -> None:
    assert isinstance(fresh().trunk.embeddings.text_visual.projection, nn.Identity)
    projection = fresh(visual_size=20).trunk.embeddings.text_visual.projection
    assert (projection.in_features, projection.out_features) == (20, 16)


def test_weights_are_drawn_as_berts_are() -> None:
    model = fresh(vocab_size=2000, hidden_size=64, num_attention_heads=4, initializer_range=0.05)
    words = model.trunk.embeddings.words.weight
    assert words[0].abs().sum() == 0, "the padding row"
    assert words[1:].std().item() == pytest.approx(0.05, rel=0.02)
    assert model.trunk.encoder.layers[0].attention.qkv.weight.std().item() == pytest.approx(0.05, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().sum() == 0, name
        if "norm" in name and name.endswith("weight"):
            assert parameter.tolist() == [1.0] * len(parameter), name
    for vector in ("region_word", "masked_region_word", "end_word", "text_only_visual"):
        assert 0.02 < getattr(model.trunk.embeddings, vector).std().item() < 0.08, vector
    assert model.trunk.region_embedding.mask_feature.abs().sum() == 0


def test_rows_that_stay_trainable_start_as_copies_of_the_frozen_ones() -> None:
    embeddings = fresh(word_embedding_frozen=True, vocab_size=1030).trunk.embeddings
    assert torch.equal(embeddings.special_words.weight, embeddings.words.weight[:1000])
    small = fresh(word_embedding_frozen=True, vocab_size=60, num_special_words=100).trunk.embeddings
    assert torch.equal(small.special_words.weight[:60], small.words.weight)


def test_the_contrast_starts_at_the_configured_scale() -> None:
    assert fresh(logit_scale_init=math.log(20)).embedding_head.scale.item() == pytest.approx(20, rel=1e-5)


def test_the_seed_decides_every_weight() -> None:
    first, second = fresh().state_dict(), fresh().state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_heads_are_left_out_as_configured() -> None:
    bare = fresh(num_region_classes=0, region_regression=False, match_outputs=0, embedding_size=0, with_mlm_head=False)
    assert {n.split(".")[0] for n, _ in bare.named_parameters()} == {"trunk"}
    assert fresh(with_pooler=False, match_outputs=0).trunk.pooler is None


def test_parameters_are_counted() -> None:
    trunk = MMBertModel(tiny_config())
    assert parameter_count(trunk, millions=False) == sum(p.numel() for p in trunk.parameters())
    assert parameter_count(fresh(vocab_size=62500)) == pytest.approx(1.07, abs=0.01)


def test_an_unknown_vision_encoder_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grid'"):
        build_vision({"kind": "gird"})
    with pytest.raises(ConfigError, match="which kind"):
        build_vision({"backbone": "resnet18"})


@pytest.mark.parametrize("make", [MMBertModel, MMBertForPreTraining])
def test_regions_of_another_width_than_the_backbones_are_a_config_error(make: Callable[[MMBertConfig], object]) -> None:
    vision = {"kind": "grid", "backbone": "test_vit", "image_size": 64}
    width = build_vision(vision).feature_size
    make(tiny_config(vision=vision, region_feature_size=width))
    with pytest.raises(ConfigError, match=f"region_feature_size is {width - 1}, .* gives {width} ") as caught:
        make(tiny_config(vision=vision, region_feature_size=width - 1))
    assert str(width) in str(caught.value.hint)
