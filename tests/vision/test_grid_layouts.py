"""The grid encoder on maps with channels first or last and on tokens: classes, grids, weights of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.packed import RegionTable
from mmbert.plugins import load
from mmbert.vision.encoders.grid import GridEncoder, build, load_backbone_weights

torch.set_num_threads(1)
TABLE = RegionTable(torch.zeros(0, 4), torch.zeros(0, 2))


def made_with_timms(backbone: str, size: int, **options: Any) -> tuple[GridEncoder, nn.Module, Tensor]:
    """The encoder, timm's model with its weights, and normalised pixels for the latter."""
    torch.manual_seed(3)
    made = GridEncoder(backbone, image_size=size, **options).eval()
    for module in made.modules():  # norms that do something
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    extra = {"img_size": size} if "vit" in backbone else {}
    if not options.get("classes"):
        extra["num_classes"] = 0
    model = timm.create_model(backbone, pretrained=False, **extra).eval()
    model.load_state_dict({k: v for k, v in made.backbone.state_dict().items() if k in model.state_dict()})
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return made, model, (pixels(size).float() / 255 - mean) / std


def pixels(size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_convnext", "test_mambaout"])
@torch.no_grad()
def test_the_whole_images_classes_are_those_of_the_backbone(backbone: str) -> None:
    """Its head averages the map, and region 0 is that average: whatever lies between has to be there too."""
    made, model, x = made_with_timms(backbone, 96, classes=True)
    classes = made(pixels(96), TABLE)[1]
    assert classes is not None
    n = made.regions_per_image
    torch.testing.assert_close(classes[::n], model(x).softmax(-1), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(classes.sum(1), torch.ones(2 * n))
    assert not torch.allclose(classes[1], classes[2])


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "test_vit"])
@torch.no_grad()
def test_a_vits_cells_are_classified_as_its_head_does_tokens(backbone: str) -> None:
    made, model, x = made_with_timms(backbone, 64, classes=True)
    tokens = model.forward_features(x)[:, model.num_prefix_tokens :]
    expected = model.head(model.fc_norm(tokens)).softmax(-1)
    classes = made(pixels(64), TABLE)[1]
    assert classes is not None
    torch.testing.assert_close(classes.view(2, 17, -1)[:, 1:], expected, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_cells_of_a_hybrid_are_the_places_of_its_convolutional_stem() -> None:
    made, model, x = made_with_timms("vit_tiny_r_s16_p8_224", 64)
    patches = model.forward_features(x)[:, model.num_prefix_tokens :]
    rows, columns = model.patch_embed.grid_size
    assert (made.rows, made.columns) == (rows, columns)
    found = made(pixels(64), TABLE)[0].view(2, 1 + rows * columns, -1)
    torch.testing.assert_close(found[:, 1:], patches, atol=1e-5, rtol=1e-3)


def test_tokens_go_to_the_grid_that_the_backbone_says() -> None:
    made = GridEncoder("test_vit", image_size=64)
    tokens = torch.arange(17.0).view(1, 17, 1)
    assert made._as_map(tokens)[0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    made.backbone.patch_embed.grid_size = (2, 8)
    assert made._as_map(tokens)[0, 0].tolist() == [list(range(1, 9)), list(range(9, 17))]
    with pytest.raises(ConfigError, match="15 tokens are no grid"):
        made._as_map(tokens[:, :-1])


@torch.no_grad()
def test_position_embeddings_of_another_size_are_interpolated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=96)
    large.pos_embed.copy_(torch.randn(large.pos_embed.shape))
    torch.save(large.state_dict(), tmp_path / "vit.pth")
    made = build(backbone="vit_tiny_patch16_224", image_size=64, weights=str(tmp_path / "vit.pth"))
    old = large.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
    new = F.interpolate(old, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made.backbone.pos_embed, torch.cat([large.pos_embed[:, :1], new], 1))
    torch.testing.assert_close(made.backbone.blocks[0].attn.qkv.weight, large.blocks[0].attn.qkv.weight)
    assert "weights" not in made.options


def test_weights_of_another_backbone_are_still_refused(tmp_path: Path) -> None:
    wider = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, embed_dim=96, num_heads=3)
    torch.save(wider.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_backbone_weights(GridEncoder("vit_tiny_patch16_224", image_size=64), str(tmp_path / "vit.pth"))


def test_options_come_as_a_flat_mapping_and_may_be_text() -> None:
    module = load("mmbert.vision.encoders", "grid")
    made = module.build(backbone="test_efficientnet", image_size="64", classes="true")
    assert (made.image_size, made.classes) == (64, True)
    with pytest.raises(ConfigError, match="did you mean 'image_size'"):
        module.build(backbone="test_efficientnet", image_sice=64)
