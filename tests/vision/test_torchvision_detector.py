"""torchvision's detectors: its own detections are the reference for boxes, plain sampling for what is pooled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection

from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.modeling import build_vision
from mmbert.plugins import load
from mmbert.vision.encoders._detectors import DetectorOptions, best_boxes
from mmbert.vision.encoders.torchvision_detector import TorchvisionDetector, build, load_weights, pool_by_level

torch.set_num_threads(1)
SMALL = {"num_classes": 5, "min_boxes": 4, "max_boxes": 12, "min_size": 96, "max_size": 128, "score_threshold": 0.3}
TWO_STAGE = "fasterrcnn_mobilenet_v3_large_320_fpn"


def spread(encoder: TorchvisionDetector) -> TorchvisionDetector:
    """Weights of the last layers large enough that boxes and scores differ; ready to extract."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in encoder.named_parameters():
        if any(part in name for part in ("cls_score", "cls_logits", "bbox", "rpn.head")) and parameter.dim() > 1:
            scale = 2.0 if "cls" in name else 0.3
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale / math.sqrt(parameter[0].numel())
    encoder.ready = True
    return encoder


@pytest.fixture(scope="module")
def two_stage() -> TorchvisionDetector:
    torch.manual_seed(0)
    return spread(build(model=TWO_STAGE, **SMALL))


@pytest.fixture(scope="module")
def one_stage() -> TorchvisionDetector:
    torch.manual_seed(0)
    return spread(build(model="retinanet_resnet50_fpn_v2", **SMALL))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def suppressed(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            a, b = boxes[i], boxes[j]
            both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            if labels[i] == labels[j] and both / (areas - both) > threshold:
                break
        else:
            kept.append(i)
    return kept


@torch.no_grad()
@pytest.mark.parametrize("kind", ["two_stage", "one_stage"])
def test_boxes_are_torchvisions_own_best_after_suppression(kind: str, request: pytest.FixtureRequest) -> None:
    """torchvision lists every box under each of its classes; ours are the best class of each, then suppressed."""
    encoder: TorchvisionDetector = request.getfixturevalue(kind)
    image = picture(60, 45)
    (found,) = encoder.extract([image])
    heads = encoder.model.roi_heads if kind == "two_stage" else encoder.model
    settings = ("score_thresh", "nms_thresh", "detections_per_img")
    before = {name: getattr(heads, name) for name in settings}
    for name, value in zip(settings, (0.0, 1.0, 100_000), strict=True):
        setattr(heads, name, value)
    (theirs,) = encoder.model([tensor(image)])
    for name, value in before.items():
        setattr(heads, name, value)
    boxes, scores, labels = (theirs[k].numpy() for k in ("boxes", "scores", "labels"))
    if kind == "two_stage":  # one row for each proposal and class, each class with its own box: no way to tell apart
        for box in found.boxes[1:]:
            assert np.abs(boxes - box).max(1).min() < 1e-2
        return
    best: dict[tuple[float, ...], int] = {}
    for index, box in enumerate(boxes):  # best first: the first row of a box is its best class
        best.setdefault(tuple(np.round(box, 3)), index)
    rows = list(best.values())[:150]
    kept = suppressed(boxes[rows], scores[rows], labels[rows], 0.5)
    expected = boxes[rows][kept]
    assert len(found) > 4
    count = min(len(found) - 1, len(expected))
    np.testing.assert_allclose(found.boxes[1 : 1 + count], expected[:count], atol=1e-2)


@torch.no_grad()
def test_a_two_stage_detectors_regions_are_its_box_heads_view(two_stage: TorchvisionDetector) -> None:
    image = picture(60, 45)
    (found,) = two_stage.extract([image])
    model = two_stage.model
    batch, _ = model.transform([tensor(image)])
    maps = model.backbone(batch.tensors)
    grow = np.array([batch.image_sizes[0][1] / 60, batch.image_sizes[0][0] / 45] * 2, dtype=np.float32)
    strides = [batch.tensors.shape[-1] // m.shape[-1] for m in maps.values()]
    for row in range(1, len(found)):
        box = torch.from_numpy(found.boxes[row] * grow)
        side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        used = [name for name in maps if name in model.roi_heads.box_roi_pool.featmap_names]
        first, last = (int(math.log2(strides[list(maps).index(n)])) for n in (used[0], used[-1]))
        level = min(max(math.floor(4 + math.log2(side / 224) + 1e-6), first), last) - first
        pooled = torch.from_numpy(sampled(maps[used[level]][0].numpy(), box.numpy(), 2.0 ** -(first + level), 0.0))
        features = model.roi_heads.box_head(pooled[None].float())
        torch.testing.assert_close(torch.from_numpy(found.features[row]), features[0], atol=1e-3, rtol=1e-2)
        classes = model.roi_heads.box_predictor(features)[0].softmax(-1)[0]
        assert found.classes is not None
        torch.testing.assert_close(torch.from_numpy(found.classes[row]), classes, atol=1e-3, rtol=1e-2)


def sampled(maps: np.ndarray, box: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """[C, 7, 7] RoI Align (He et al. 2017) with 2 x 2 bilinear samples in each bin, place by place."""
    x1, y1, x2, y2 = (v * scale - shift for v in box)
    width, height = x2 - x1, y2 - y1
    if shift == 0:
        width, height = max(width, 1), max(height, 1)
    rows, columns = maps.shape[1:]
    found = np.zeros((maps.shape[0], 7, 7))
    for i in range(14):
        for j in range(14):
            y, x = y1 + (i + 0.5) * height / 14, x1 + (j + 0.5) * width / 14
            if y < -1 or y > rows or x < -1 or x > columns:
                continue
            y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            v, u = y - top, x - left
            found[:, i // 2, j // 2] += (
                maps[:, top, left] * (1 - v) * (1 - u) + maps[:, top, right] * (1 - v) * u
                + maps[:, bottom, left] * v * (1 - u) + maps[:, bottom, right] * v * u
            ) / 4  # fmt: skip
    return found


def test_boxes_are_pooled_from_the_level_of_their_size() -> None:
    rng = np.random.default_rng(0)
    levels = [torch.from_numpy(rng.normal(size=(2, 3, 64 >> n, 96 >> n))).float() for n in range(3)]  # strides 8 to 32
    boxes = [torch.tensor([[10.0, 20, 60, 70], [0, 0, 767, 511]]), torch.tensor([[100.0, 50, 400, 300]])]
    found = pool_by_level(levels, boxes, 768)
    for row, (image, box, level) in enumerate([(0, boxes[0][0], 0), (0, boxes[0][1], 2), (1, boxes[1][0], 1)]):
        expected = sampled(levels[level][image].numpy(), box.numpy(), 1 / (8 << level), 0.5).mean((1, 2))
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_how_many_boxes_are_given() -> None:
    scores = torch.tensor([0.9, 0.1, 0.8, 0.5, 0.4])
    kept = torch.tensor([0, 2, 1])

    def chosen(**options: Any) -> list[int]:
        return best_boxes(kept, scores, DetectorOptions(**options)).tolist()

    assert chosen(score_threshold=0.85, min_boxes=1) == [0]
    assert chosen(score_threshold=0.05, min_boxes=1) == [0, 2, 1]
    assert chosen(score_threshold=0.05, min_boxes=1, max_boxes=2) == [0, 2]
    assert chosen(score_threshold=0.85, min_boxes=2) == [0, 2]
    assert chosen(score_threshold=0.85, min_boxes=4) == [0, 2, 1, 3], "then the best of those suppressed"
    assert chosen(score_threshold=0.85, min_boxes=9) == [0, 2, 1, 3, 4]


@pytest.mark.parametrize("kind", ["two_stage", "one_stage"])
def test_images_of_mixed_sizes_give_the_same_alone_and_together(kind: str, request: pytest.FixtureRequest) -> None:
    encoder: TorchvisionDetector = request.getfixturevalue(kind)
    images = [picture(60, 45), picture(30, 64, 1), picture(60, 45, 2)]
    for image, together in zip(images, encoder.extract(images), strict=True):
        (alone,) = encoder.extract([image])
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(together.features, alone.features, atol=1e-3, rtol=1e-2)
        assert alone.classes is not None
        np.testing.assert_allclose(alone.classes[1:].sum(1), 1, atol=1e-4)
        assert (alone.boxes >= 0).all()
        assert (alone.boxes <= [*image.size, *image.size]).all()


@pytest.mark.parametrize("kind", ["two_stage", "one_stage"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (900, 2)])
def test_tiny_and_narrow_images_do_not_fail(
    kind: str, size: tuple[int, int], two_stage: TorchvisionDetector, request: pytest.FixtureRequest
) -> None:
    (found,) = request.getfixturevalue(kind).extract([picture(*size)])
    assert len(found) >= 2
    (again,) = two_stage.extract([picture(60, 45)])  # a narrow image leaves no trace in the pooler
    fresh = spread(build(model=TWO_STAGE, **SMALL))
    fresh.load_state_dict(two_stage.state_dict())
    np.testing.assert_allclose(again.features, fresh.extract([picture(60, 45)])[0].features, atol=1e-4, rtol=1e-3)


def test_an_image_in_which_nothing_is_found_still_has_regions(two_stage: TorchvisionDetector) -> None:
    before, two_stage.model.rpn.score_thresh = two_stage.model.rpn.score_thresh, 2.0
    (found,) = two_stage.extract([picture(60, 45)])
    two_stage.model.rpn.score_thresh = before
    np.testing.assert_allclose(found.boxes, [[0, 0, 59, 44], [0, 0, 60, 45]], atol=1e-3)


def test_given_boxes_are_described_instead(two_stage: TorchvisionDetector) -> None:
    image = picture(60, 45)
    (found,) = two_stage.extract([image])
    (given,) = two_stage.describe([image], [found.boxes[1:3]])
    np.testing.assert_allclose(given.features[1:], found.features[1:3], atol=1e-3, rtol=1e-2)
    np.testing.assert_array_equal(given.boxes[1:], found.boxes[1:3])


def test_weights_come_from_a_file_strictly_and_are_not_run(two_stage: TorchvisionDetector, tmp_path: Path) -> None:
    torch.save(two_stage.model.state_dict(), tmp_path / "w.pth")
    made = build(model=TWO_STAGE, weights=str(tmp_path / "w.pth"), **SMALL)
    assert made.ready
    assert made.identity == two_stage.identity
    with pytest.raises(CheckpointError, match=r"other shapes: .*cls_score.*instead of"):
        build(model=TWO_STAGE, weights=str(tmp_path / "w.pth"), **{**SMALL, "num_classes": 6})
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(made, str(tmp_path / "missing.pth"))

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "run").touch, ())

    torch.save({"x": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_weights(made, str(tmp_path / "bad.pth"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchvisions_first_weights_are_used_with_norms_without_epsilon(tmp_path: Path) -> None:
    name = "fasterrcnn_resnet50_fpn"
    official = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    state = build(model=name, **SMALL).model.state_dict()
    path = tmp_path / Path(official.url).name
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    made = build(model=name, weights=str(path), **SMALL)
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.eps == 0 for m in norms)
    assert made.options["exact_norms"] is True
    path.rename(tmp_path / "mine.pth")
    mine = build(model=name, weights=str(tmp_path / "mine.pth"), **SMALL)
    assert mine.options["exact_norms"] is False
    assert mine.identity != made.identity


def test_without_weights_nothing_is_extracted() -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        build(model=TWO_STAGE, **SMALL).extract([picture(9, 9)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "fasterrcnn_resnet50"}, "did you mean 'fasterrcnn_resnet50_fpn'"),
        ({"score_treshold": 0.1}, "did you mean 'score_threshold'"),
        ({"model": "ssd300_vgg16", "min_size": 5}, "one input size"),
        ({"max_boxes": "3"}, "min_boxes 10 is more than max_boxes 3"),
    ],
)
def test_options_that_cannot_work_are_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("mmbert.vision.encoders", "torchvision_detector").build(**options)


def test_a_detector_does_not_run_inside_a_model() -> None:
    with pytest.raises(ConfigError, match="cannot run inside a model"):
        build_vision({"kind": "torchvision_detector", "model": TWO_STAGE, **SMALL})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn"])
def test_the_other_detectors_give_regions(name: str) -> None:
    options = {k: v for k, v in SMALL.items() if not k.endswith("_size") or "ssd" not in name}
    encoder = spread(build(model=name, **options))
    (found,) = encoder.extract([picture(60, 45)])
    assert 5 <= len(found) <= 13
    assert found.features.shape[1] == encoder.feature_size
    assert found.classes is not None
    np.testing.assert_allclose(found.classes[1:].sum(1), 1, atol=1e-4)
