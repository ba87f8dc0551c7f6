"""The end-to-end region encoder: against a plain re-computation, and what must not change its features."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import plain_resnet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet

from mmbert.errors import CheckpointError, ConfigError, DataError
from mmbert.vision.encoders.resnet import BoxResNet, build, cut_out, load_backbone_weights
from mmbert.vision.regions import GivenBoxes, polygon_mask

torch.set_num_threads(1)
SMALL = {"layers": 14, "short_side": 32, "long_side": 64}
MEAN_RGB = torch.tensor([122.7717, 115.9465, 102.9801])


def made(**options: object) -> BoxResNet:
    """A small encoder whose norms do something."""
    encoder = build(**{**SMALL, **options}).eval()
    encoder.load_state_dict(plain_resnet.shake(encoder.state_dict()))
    return encoder


@pytest.fixture(scope="module")
def encoder() -> BoxResNet:
    return made()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def given_boxes(*boxes: tuple[float, float, float, float], **rows: np.ndarray) -> GivenBoxes:
    return GivenBoxes(np.array(boxes, dtype=np.float32).reshape(-1, 4), **rows)


def features(encoder: BoxResNet, images: list[Image.Image], boxes: list[GivenBoxes | None]) -> list[Tensor]:
    """[n, 2048] per image."""
    first_rows, table = encoder.table([image.size for image in images], boxes)
    with torch.no_grad():
        found, classes = encoder([encoder.prepare(image) for image in images], table)
    assert classes is None
    return [found[a:b] for a, b in pairwise(first_rows)]


# -- against a plain computation ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_boxes_are_cut_out_as_the_formula_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 9, 2)
    maps = rng.standard_normal((2, 3, rows, columns))
    corners = np.sort(rng.uniform(-20, 16 * max(rows, columns) + 40, (5, 2, 2)), axis=1).reshape(5, 4)
    numbers = rng.integers(0, 2, 5)
    found = cut_out(torch.from_numpy(maps), torch.from_numpy(corners), torch.from_numpy(numbers))
    for row, box, number in zip(found, corners, numbers, strict=True):
        np.testing.assert_allclose(row.numpy(), plain_resnet.roi_align(maps[number], box), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dilated", [True, False])
def test_features_are_those_of_a_plain_computation(dilated: bool) -> None:
    encoder = made(dilated=dilated)
    image = picture(60, 40)
    masks = np.random.default_rng(1).random((2, 14, 14)).astype(np.float32)
    boxes = given_boxes((3, 5, 40, 33), (20, 0, 59, 39), masks=masks)
    (found,) = features(encoder, [image], [boxes])
    pixels = torch.from_numpy(np.array(image.resize((48, 32), Image.Resampling.BILINEAR))).float()
    normalised = (pixels - MEAN_RGB).flip(2).permute(2, 0, 1).unsqueeze(0)
    last = np.array([47 / 0.8, 31 / 0.8, 47 / 0.8, 31 / 0.8])
    corners = np.minimum(np.concatenate([[[0, 0, 59, 39]], boxes.boxes]), last) * 0.8
    wanted = plain_resnet.region_features(
        encoder.state_dict(),
        normalised,
        corners,
        torch.from_numpy(np.concatenate([np.ones((1, 14, 14), np.float32), masks])),
        dilated,
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_stride_may_be_in_the_3x3_convolution() -> None:
    """As torchvision's networks have it, with their channel order and scale."""
    encoder = made(stride_in_1x1=False, bgr=False, mean=[100, 110, 120], std=[50, 60, 70])
    pixels = torch.randint(0, 256, (1, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([100.0, 110, 120], [50.0, 60, 70]))
    with torch.no_grad():
        found = encoder.feature_map(encoder.normalised(pixels))
        again = encoder.feature_map(encoder.normalised(pixels.double() / 255))
    wanted = plain_resnet.feature_map(encoder.state_dict(), (pixels - mean) / std, in_1x1=False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_published_depths_are_torchvisions() -> None:
    from torchvision.models import resnet50, resnet101

    for layers, make in ((50, resnet50), (101, resnet101)):
        with torch.device("meta"):
            ours, theirs = BoxResNet(layers).state_dict(), make().state_dict()
        assert {key: value.shape for key, value in ours.items()} == {
            key: value.shape for key, value in theirs.items() if not key.startswith("fc.")
        }


# -- what must not matter, and what must -------------------------------------------------------------------------------


def test_an_image_gives_the_same_alone_and_among_images_of_other_sizes(encoder: BoxResNet) -> None:
    images = [picture(48, 32, 1), picture(32, 40, 2), picture(48, 32, 3)]
    boxes = [given_boxes((0, 0, 20, 20), (9, 3, 40, 30)), None, given_boxes((5, 5, 30, 31))]
    together = features(encoder, images, boxes)
    assert [len(part) for part in together] == [3, 1, 2]
    for image, box, part in zip(images, boxes, together, strict=True):
        (alone,) = features(encoder, [image], [box])
        torch.testing.assert_close(part, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def test_boxes_that_are_many_go_through_the_last_stage_in_parts(
    encoder: BoxResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = torch.randn(3, 1024, 14, 14, generator=torch.Generator().manual_seed(2))
    masks = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = encoder.features_of(maps, masks)
        monkeypatch.setattr("mmbert.vision.encoders.resnet.ROIS_AT_ONCE", 2)
        torch.testing.assert_close(encoder.features_of(maps, masks), whole, rtol=1e-5, atol=1e-5)
    assert encoder.features_of(maps[:0]).shape == (0, 2048)


def test_hidden_boxes_are_blanked_before_anything_looks(encoder: BoxResNet) -> None:
    """Also for the other regions: the same as with the mean colour painted over the pixels."""
    image = picture(48, 32, 4)
    boxes = [(8.0, 4.0, 19.6, 15.2), (0.0, 0.0, 40.0, 30.0)]
    (hidden,) = features(encoder, [image], [given_boxes(*boxes, hidden=np.array([True, False]))])
    pixels = encoder.prepare(image).double()
    pixels[:, 4:16, 8:20] = MEAN_RGB.view(3, 1, 1).double()
    _, table = encoder.table([image.size], [given_boxes(*boxes)])
    with torch.no_grad():
        painted, _ = encoder([pixels / 255], table)
    torch.testing.assert_close(hidden, painted, rtol=1e-5, atol=1e-5 * float(painted.abs().max()))
    (seen,) = features(encoder, [image], [given_boxes(*boxes)])
    assert (hidden - seen).abs().amax(1).min() > 1e-3


def test_only_what_is_not_frozen_learns_and_statistics_never_change() -> None:
    encoder = made(frozen_stages=[1, 2, 3]).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    _, table = encoder.table([(32, 32)])
    found, _ = encoder([encoder.prepare(picture(32, 32))], table)
    found.sum().backward()
    learns = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in learns} == {"layer3", "layer4"}
    assert not any("bn" in name or "downsample.1" in name for name in learns)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    loose = BoxResNet(14, frozen_stages=[], frozen_norm=False)
    assert all(parameter.requires_grad for parameter in loose.parameters())


@pytest.mark.parametrize(
    ("size", "wanted", "sides"),
    [
        ((500, 375), (800, 600), (600, 1000)),
        ((375, 500), (600, 800), (600, 1000)),
        ((2000, 500), (1000, 250), (600, 1000)),
        ((1920, 1080), (999, 562), (600, 1000)),
        ((1920, 1080), (1066, 600), (600, 1200)),
        ((300, 300), (600, 600), (600, 1000)),
    ],
)
def test_the_shorter_side_decides_unless_the_longer_would_grow_too_long(
    size: tuple[int, int], wanted: tuple[int, int], sides: tuple[int, int]
) -> None:
    with torch.device("meta"):
        encoder = BoxResNet(14, short_side=sides[0], long_side=sides[1])
    assert encoder.input_size(*size) == wanted


def test_boxes_end_with_the_image() -> None:
    """In pixels of the image; after resizing the last pixel that is left is where they end."""
    with torch.device("meta"):
        encoder = BoxResNet(14, short_side=16, long_side=64)
    assert encoder.boxes(64, 32).tolist() == [[0, 0, 62, 30]]  # 32 x 16 pixels are left: the last is 31, 15
    assert encoder.boxes(8, 8).tolist() == [[0, 0, 7, 7]]
    placed = encoder.place(np.array([[-3, 5, 70, 20]], dtype=np.float32), 64, 32)
    assert placed.tolist() == [[0, 5, 62, 20]]


# -- ahead of the model ------------------------------------------------------------------------------------------------


def test_regions_are_extracted_with_and_without_boxes(encoder: BoxResNet) -> None:
    images = [picture(64, 40, 5), picture(64, 40, 6)]
    classes = np.array([[0.25, 0.75]], dtype=np.float32)
    boxes = given_boxes((10, 10, 50, 30), classes=classes)
    alone, looked = encoder.extract(images, [None, boxes])
    assert len(alone) == 1
    assert looked.boxes[1].tolist() == [10, 10, 50, 30]
    assert looked.size == (64, 40)
    assert looked.classes is not None
    assert looked.classes.tolist() == [[0, 0], [0.25, 0.75]]
    assert alone.encoder == looked.encoder == encoder.identity
    (again,) = encoder.extract([images[1]])
    assert len(again) == 1
    np.testing.assert_allclose(again.features[0], looked.features[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 18}, "no ResNet of 18 layers"),
        ({"frozen_stages": [0]}, "stages are 1 to 5"),
        ({"short_side": 900, "long_side": 600}, "short_side 900"),
        ({"depth": 50}, "vision encoder 'resnet'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("boxes", "rows", "message"),
    [
        (np.zeros((1, 5)), {}, "boxes must be"),
        (np.array([[0, 0, np.nan, 1]]), {}, "not finite"),
        (np.array([[5, 0, 4, 1]]), {}, "ends before it starts"),
        (np.zeros((2, 4)), {"masks": np.zeros((1, 14, 14))}, "2 boxes but masks"),
    ],
)
def test_wrong_boxes_are_refused(boxes: np.ndarray, rows: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        GivenBoxes(boxes, **rows)


# -- the backbone's own checkpoint -------------------------------------------------------------------------------------


def torchvision_state(blocks: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return ResNet(Bottleneck, list(blocks), num_classes=2).state_dict()


def vlbert_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a whole VL-BERT checkpoint holds them."""
    return {
        f"module.image_feature_extractor.roi_head_feature_extractor.{key.removeprefix('layer4.')}"
        if key.startswith("layer4.")
        else f"module.image_feature_extractor.backbone.{key}": value
        for key, value in state.items()
    }


@pytest.mark.parametrize("form", ["torchvision", "wrapped", "vlbert", "old norms"])
def test_a_backbones_checkpoint_is_read_in_every_form(form: str, tmp_path: Path) -> None:
    state = torchvision_state()
    written: object = {
        "torchvision": state,
        "wrapped": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        "vlbert": vlbert_names(state),
        "old norms": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    }[form]
    path = tmp_path / "resnet101-pt-vgbua-0000.model"
    torch.save(written, path)
    encoder = build(**SMALL)
    loaded, left = load_backbone_weights(encoder, str(path))
    found = encoder.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in loaded)
    assert {name for name in found if not name.endswith("num_batches_tracked")} <= set(loaded)
    assert sorted(key.rsplit("fc.", 1)[1] for key in left) == ["bias", "weight"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    encoder, path = build(**SMALL), tmp_path / "b.pth"
    state = torchvision_state()
    torch.save({key: value for key, value in state.items() if key != "layer3.0.conv2.weight"}, path)
    with pytest.raises(CheckpointError, match=r"1 missing, the first layer3\.0\.conv2\.weight"):
        load_backbone_weights(encoder, str(path))
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"conv1\.weight is \[64, 3, 3, 3\] instead of \[64, 3, 7, 7\]"):
        load_backbone_weights(encoder, str(path))
    torch.save(encoder, path)
    with pytest.raises(CheckpointError, match="cannot read backbone weights"):
        load_backbone_weights(encoder, str(path))
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="no state dict"):
        load_backbone_weights(encoder, str(path))


# -- instance masks ----------------------------------------------------------------------------------------------------


def test_a_mask_covers_what_the_outline_encloses() -> None:
    box = (10.0, 20.0, 37.0, 61.0)  # 28 x 42 pixels: cells of 2 x 3
    left_half = [(10, 20), (24, 20), (24, 62), (10, 62)]
    mask = polygon_mask(box, [[value for point in left_half for value in point]])
    assert mask.shape == (14, 14)
    assert (mask[:, :7] == 1).all()
    assert (mask[:, 7:] == 0).all()
    top = [10, 20, 38, 20, 38, 41, 10, 41]
    both = polygon_mask(box, [[v for p in left_half for v in p], top])
    assert (both[:7] == 1).all()
    np.testing.assert_array_equal(both[7:], mask[7:])
    assert polygon_mask(box, []).sum() == 0
    assert polygon_mask(box, [[1, 2, 3, 4]]).sum() == 0, "two points enclose nothing"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 13.9), st.floats(0, 13.9)), min_size=3, max_size=3))
def test_a_triangles_mask_has_about_its_area(points: list[tuple[float, float]]) -> None:
    (ax, ay), (bx, by), (cx, cy) = points
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2
    around = sum(np.hypot(p[0] - q[0], p[1] - q[1]) for p, q in zip(points, points[1:] + points[:1], strict=True))
    mask = polygon_mask((0, 0, 13, 13), [[value for point in points for value in point]])
    assert abs(mask.sum() - area) <= 0.8 * around + 2, "cells that the outline cuts may go either way"
