"""Bottom-up attention equals the published network, written once more from its Caffe layers, blob by blob."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmbert.errors import CheckpointError, ConfigError, DataError
from mmbert.plugins import load
from mmbert.vision.encoders._bottom_up_network import caffe_anchors, continuous_anchors
from mmbert.vision.encoders.bottom_up import BottomUp, build, kept_confidence

torch.set_num_threads(1)
CLASSES, ATTRIBUTES, WIDTH, HIDDEN = 7, 5, 4, 6
ATTRIBUTE_LAYERS = ("cls_embedding", "fc_attr", "attr_score")
LETTERS = {2: ["a"], 3: ["a"], 4: ["a", "b1"], 5: ["a"]}
SMALL = {"short_side": 96, "long_side": 128, "proposals": 12, "min_boxes": 5, "max_boxes": 9, "score_threshold": 0.2}
Blobs = dict[str, list[np.ndarray]]


def blobs_of_caffe() -> Blobs:
    """Random blobs of a narrow network, named as in the original's test.prototxt."""
    rng = np.random.default_rng(5)
    found: Blobs = {}

    def conv(name: str, tail: str, out: int, into: int, size: int) -> None:
        found[name] = [rng.normal(0, (2 / (into * size * size)) ** 0.5, (out, into, size, size))]
        found[f"bn{tail}"] = [rng.normal(0, 0.4, out), rng.uniform(1, 3, out), np.array([2.0])]
        found[f"scale{tail}"] = [rng.uniform(0.5, 1.5, out), rng.normal(0, 0.3, out)]

    conv("conv1", "_conv1", WIDTH, 3, 7)
    found["conv1"][0] /= 60  # pixels are that large
    size = WIDTH
    for stage, letters in LETTERS.items():
        inner = WIDTH * 2 ** (stage - 2)
        for letter in letters:
            at = f"{stage}{letter}_branch"
            if letter == "a":
                conv(f"res{at}1", f"{at}1", inner * 4, size, 1)
            conv(f"res{at}2a", f"{at}2a", inner, size, 1)
            conv(f"res{at}2b", f"{at}2b", inner, inner, 3)
            conv(f"res{at}2c", f"{at}2c", inner * 4, inner, 1)
            size = inner * 4
    mid, last = size // 2, size
    for name, shape in {
        "rpn_conv/3x3": (HIDDEN, mid, 3, 3), "rpn_cls_score": (24, HIDDEN, 1, 1), "rpn_bbox_pred": (48, HIDDEN, 1, 1),
        "cls_score": (CLASSES, last), "bbox_pred": (4 * CLASSES, last), "cls_embedding": (CLASSES, 3),
        "fc_attr": (8, last + 3), "attr_score": (ATTRIBUTES, 8),
    }.items():  # fmt: skip
        spread = (0.05 if "bbox" in name else 0.5) / math.prod(shape[1:]) ** 0.5
        found[name] = [rng.normal(0, spread, shape), rng.normal(0, 0.1, shape[0])]
    found["cls_embedding"] = found["cls_embedding"][:1]
    return {name: [part.astype(np.float32) for part in parts] for name, parts in found.items()}


def independent(blobs: Blobs, image: Image.Image, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, features, class distributions and attribute probabilities, in Caffe's convention, by plain formulas."""

    def layer(x: Tensor, name: str, tail: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = torch.from_numpy(blobs[name][0])
        x = F.conv2d(x, weight, stride=stride, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        mean, variance, by = (torch.from_numpy(b) for b in blobs[f"bn{tail}"])
        gamma, beta = (torch.from_numpy(b).view(-1, 1, 1) for b in blobs[f"scale{tail}"])
        return (x - (mean / by).view(-1, 1, 1)) / torch.sqrt((variance / by).view(-1, 1, 1) + 1e-5) * gamma + beta

    def stage(x: Tensor, number: int) -> Tensor:
        for letter in LETTERS[number]:
            at = f"{number}{letter}_branch"
            stride = 2 if letter == "a" and number in (3, 4) else 1
            inner = layer(x, f"res{at}2a", f"{at}2a", stride).clamp(min=0)
            inner = layer(inner, f"res{at}2b", f"{at}2b", dilation=2 if number == 5 else 1).clamp(min=0)
            inner = layer(inner, f"res{at}2c", f"{at}2c")
            x = (inner + (layer(x, f"res{at}1", f"{at}1", stride) if letter == "a" else x)).clamp(min=0)
        return x

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ torch.from_numpy(blobs[name][0]).T + torch.from_numpy(blobs[name][1])

    pixels = np.asarray(image).astype(np.float64)[:, :, ::-1] - np.array([102.9801, 115.9465, 122.7717])
    scale = options["short_side"] / min(image.size)
    if np.round(scale * max(image.size)) > options["long_side"]:
        scale = options["long_side"] / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    resized = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            resized[y, x] = bilinear(pixels, (y + 0.5) / scale - 0.5, (x + 0.5) / scale - 0.5)
    maps = layer(torch.from_numpy(resized).float().permute(2, 0, 1)[None], "conv1", "_conv1", 2).clamp(min=0)
    maps = F.max_pool2d(F.pad(maps, (0, 1, 0, 1), value=-math.inf), 3, 2)  # even sides: "up" is one more column
    for number in (2, 3, 4):
        maps = stage(maps, number)

    hidden = F.conv2d(maps, *(torch.from_numpy(b) for b in blobs["rpn_conv/3x3"]), padding=1).clamp(min=0)
    score = F.conv2d(hidden, *(torch.from_numpy(b) for b in blobs["rpn_cls_score"]))[0].double()
    delta = F.conv2d(hidden, *(torch.from_numpy(b) for b in blobs["rpn_bbox_pred"]))[0].numpy()
    candidates = []
    for y in range(maps.shape[2]):
        for x in range(maps.shape[3]):
            for a in range(12):
                sure = float(torch.softmax(score[[a, 12 + a], y, x], 0)[1])
                box = shifted(anchor(a) + np.array([x, y, x, y]) * 16, delta[4 * a : 4 * a + 4, y, x])
                box = np.clip(box, 0, np.array([width - 1, height - 1] * 2))
                if min(box[2] - box[0], box[3] - box[1]) + 1 >= 16 * scale:
                    candidates.append((sure, box))
    candidates.sort(key=lambda c: -c[0])
    proposals = np.array([candidates[i][1] for i in greedy([b for _, b in candidates], 0.7)[: options["proposals"]]])

    features = torch.stack([stage(pooled(maps[0], box)[None], 5)[0].mean((1, 2)) for box in proposals])
    classes = torch.softmax(linear(features, "cls_score"), 1)
    boxes = proposals / scale
    sure = np.zeros(len(boxes))
    for c in range(1, CLASSES):
        order = sorted(range(len(boxes)), key=lambda i: -float(classes[i, c]))
        for kept in greedy([boxes[i] for i in order], 0.3):
            sure[order[kept]] = max(sure[order[kept]], float(classes[order[kept], c]))
    best = sorted(range(len(boxes)), key=lambda i: (-sure[i], i))
    count = int(np.clip((sure >= options["score_threshold"]).sum(), options["min_boxes"], options["max_boxes"]))
    words = torch.from_numpy(blobs["cls_embedding"][0])[classes.argmax(1)]
    attributes = linear(linear(torch.cat([features, words], 1), "fc_attr").clamp(min=0), "attr_score").softmax(1)
    chosen = best[:count]
    return torch.from_numpy(boxes[chosen]).float(), features[chosen], classes[chosen], attributes[chosen]


def bilinear(pixels: np.ndarray, y: float, x: float) -> np.ndarray:
    y, x = min(max(y, 0), pixels.shape[0] - 1), min(max(x, 0), pixels.shape[1] - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, pixels.shape[0] - 1), min(left + 1, pixels.shape[1] - 1)
    v, u = y - top, x - left
    upper = pixels[top, left] * (1 - u) + pixels[top, right] * u
    return upper * (1 - v) + (pixels[bottom, left] * (1 - u) + pixels[bottom, right] * u) * v


def anchor(number: int) -> np.ndarray:
    """Ratios 1/2, 1, 2 of a cell of 16 x 16, sides rounded, times 4, 8, 16, 32, around (7.5, 7.5)."""
    w, h = [(23, 12), (16, 16), (11, 22)][number // 4]
    w, h = w * 2 ** (2 + number % 4), h * 2 ** (2 + number % 4)
    return np.array([7.5 - (w - 1) / 2, 7.5 - (h - 1) / 2, 7.5 + (w - 1) / 2, 7.5 + (h - 1) / 2])


def shifted(box: np.ndarray, delta: np.ndarray) -> np.ndarray:
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    x, y = box[0] + w / 2 + delta[0] * w, box[1] + h / 2 + delta[1] * h
    w, h = w * math.exp(delta[2]), h * math.exp(delta[3])
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def greedy(boxes: list[np.ndarray], threshold: float) -> list[int]:
    kept: list[int] = []
    for i, a in enumerate(boxes):
        for j in kept:
            b = boxes[j]
            both = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
            areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
            if both / (sum(areas) - both) > threshold:
                break
        else:
            kept.append(i)
    return kept


def pooled(maps: Tensor, box: np.ndarray) -> Tensor:
    """14 x 14 RoI pooling (Girshick 2015): rounded corners that belong to the box, bins from floor to ceiling."""
    x1, y1, x2, y2 = (math.floor(np.float32(v) / 16 + 0.5) for v in box)
    found = torch.zeros(maps.shape[0], 14, 14)
    high, wide = (np.float32(max(n, 1)) / np.float32(14) for n in (y2 - y1 + 1, x2 - x1 + 1))
    for i in range(14):
        for j in range(14):
            rows = [y1 + math.floor(np.float32(i) * high), y1 + math.ceil(np.float32(i + 1) * high)]
            columns = [x1 + math.floor(np.float32(j) * wide), x1 + math.ceil(np.float32(j + 1) * wide)]
            rows, columns = np.clip(rows, 0, maps.shape[1]).tolist(), np.clip(columns, 0, maps.shape[2]).tolist()
            part = maps[:, rows[0] : rows[1], columns[0] : columns[1]]
            found[:, i, j] = part.flatten(1).max(1).values if part.numel() else 0
    return found


def as_detectron2(blobs: Blobs, *, continuous: bool) -> dict[str, np.ndarray]:
    """The blobs under detectron2's names; with its conventions (background last, one objectness) where continuous."""
    found: dict[str, np.ndarray] = {}

    def conv(target: str, name: str, tail: str) -> None:
        mean, variance, by = blobs[f"bn{tail}"]
        found[f"{target}.weight"] = blobs[name][0]
        found[f"{target}.norm.weight"], found[f"{target}.norm.bias"] = blobs[f"scale{tail}"]
        found[f"{target}.norm.running_mean"], found[f"{target}.norm.running_var"] = mean / by, variance / by
        found[f"{target}.norm.num_batches_tracked"] = np.array(0)

    conv("backbone.stem.conv1", "conv1", "_conv1")
    for stage, letters in LETTERS.items():
        for index, letter in enumerate(letters):
            target = f"{'roi_heads' if stage == 5 else 'backbone'}.res{stage}.{index}"
            for part, branch in {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}.items():
                if f"res{stage}{letter}_branch{branch}" in blobs:
                    conv(f"{target}.{part}", f"res{stage}{letter}_branch{branch}", f"{stage}{letter}_branch{branch}")
    names = ATTRIBUTE_LAYERS if continuous else ("cls_embed", "attr_linear1", "attr_linear2")
    heads = {
        "rpn_conv/3x3": "proposal_generator.rpn_head.conv",
        "rpn_cls_score": "proposal_generator.rpn_head.objectness_logits",
        "rpn_bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
        "cls_score": "roi_heads.box_predictor.cls_score",
        "bbox_pred": "roi_heads.box_predictor.bbox_pred",
        **{old: f"roi_heads.box_predictor.{new}" for old, new in zip(ATTRIBUTE_LAYERS, names, strict=True)},
    }
    for old, new in heads.items():
        for end, value in zip((".weight", ".bias"), blobs[old], strict=False):
            if continuous and old == "rpn_cls_score":
                value = value[12:] - value[:12]
            elif continuous and old == "bbox_pred":
                value = value[4:]
            elif continuous and old in ("cls_score", "cls_embedding", "attr_score"):
                value = np.concatenate([value[1:], value[:1]])
            found[new + end] = value
    return found


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    return blobs_of_caffe()


@pytest.fixture(scope="module")
def path(blobs: Blobs, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "blobs.npz"
    np.savez(file, **{f"{name}.{i}": part for name, parts in blobs.items() for i, part in enumerate(parts)})
    return str(file)


@pytest.fixture(scope="module")
def encoder(path: str) -> BottomUp:
    return build(weights=path, **SMALL)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_the_converted_network_equals_the_formulas_block_by_block(encoder: BottomUp, blobs: Blobs) -> None:
    image = picture(40, 30)
    boxes, features, classes, attributes = independent(blobs, image, SMALL)
    (found,) = encoder.extract([image])
    assert len(boxes) >= 5
    assert features.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(found.boxes[1:]), boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(found.features[1:]), features, atol=1e-4, rtol=1e-3)
    assert found.classes is not None
    torch.testing.assert_close(torch.from_numpy(found.classes[1:]), classes, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        torch.from_numpy(encoder.attributes(found.features[1:])), attributes, atol=1e-5, rtol=1e-3
    )
    assert found.boxes[0].tolist() == [0, 0, 39, 29]
    np.testing.assert_allclose(found.features[0], found.features[1:].mean(0), rtol=1e-5)


def test_anchors_are_the_published_ones() -> None:
    """The table that py-faster-rcnn's generate_anchors gives for scales 8, 16 and 32."""
    published = [
        [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199], [-56, -56, 71, 71], [-120, -120, 135, 135],
        [-248, -248, 263, 263], [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
    ]  # fmt: skip
    assert caffe_anchors().view(3, 4, 4)[:, 1:].reshape(9, 4).tolist() == published
    sides = continuous_anchors()[:, 2:] - continuous_anchors()[:, :2]
    torch.testing.assert_close(sides.prod(1).sqrt(), torch.tensor([64.0, 128, 256, 512]).repeat_interleave(3))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]).repeat(4))


def saved(state: Any, path: Path) -> str:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in state["model"].items()}
        torch.save({"model": tensors, "iteration": 7}, path)
    return str(path)


def test_every_layout_gives_the_same_network(encoder: BottomUp, blobs: Blobs, tmp_path: Path) -> None:
    wanted = encoder.network.state_dict()
    listed = build(weights=saved(blobs, tmp_path / "blobs.pkl"), **SMALL)
    pixels = build(weights=saved({"model": as_detectron2(blobs, continuous=False)}, tmp_path / "a.pth"), **SMALL)
    last = as_detectron2(blobs, continuous=True)
    other = build(weights=saved({"model": last, "__author__": "x"}, tmp_path / "b.pkl"), **SMALL)
    for made in (listed, pixels, other):
        for name, tensor in made.network.state_dict().items():
            expected = wanted[name]
            if made is other and name == "proposals.anchors":
                expected = continuous_anchors()
            elif made is other and name.startswith("predictor.deltas"):
                tensor, expected = tensor[4:], expected[4:]
            torch.testing.assert_close(tensor, expected, msg=name)
    assert listed.identity == encoder.identity
    assert (encoder.settings.convention, pixels.settings.convention) == ("caffe", "caffe")
    assert other.settings.convention == "detectron2"
    assert pixels.left_out
    assert all(name.endswith("num_batches_tracked") for name in pixels.left_out)
    assert other.identity != encoder.identity
    (found,) = other.extract([picture(40, 30)])
    assert found.features.shape == (len(found), 4 * 32)


def test_anchors_that_the_file_brings_are_used(blobs: Blobs, tmp_path: Path) -> None:
    state = as_detectron2(blobs, continuous=False)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = caffe_anchors().numpy() + 3
    made = build(weights=saved({"model": state}, tmp_path / "a.pth"), **SMALL)
    torch.testing.assert_close(made.network.proposals.anchors, caffe_anchors() + 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b.pop("res4b1_branch2b"), "res4.1.conv2.weight"),
        (lambda b: b.pop("conv1"), "stem.weight is missing"),
        (lambda b: b.update(res9a_branch1=[np.zeros(3, np.float32)]), "res9a_branch1"),
        (lambda b: b.update(fc_attr=[np.zeros((8, 9), np.float32), np.zeros(8, np.float32)]), "other shapes"),
        (lambda b: b["bn4a_branch2b"].pop(), "third blob"),
        (lambda b: b["conv1"].append(np.zeros(4, np.float32)), r"conv1\.1"),
        (lambda b: b.update(conv1=["text"]), "not an array"),
    ],
    ids=["missing", "no stem", "unknown", "shape", "half a norm", "bias", "no numbers"],
)
def test_weights_that_do_not_fit_are_refused(
    blobs: Blobs, tmp_path: Path, spoil: Callable[[Blobs], Any], message: str
) -> None:
    changed = {name: list(parts) for name, parts in blobs.items()}
    spoil(changed)
    with pytest.raises(CheckpointError, match=message):
        build(weights=saved(changed, tmp_path / "x.pkl"))


def test_relations_are_left_out_and_said_so(blobs: Blobs, tmp_path: Path) -> None:
    more = {**blobs, "rel_score": [np.zeros((21, 4), np.float32)]}
    assert build(weights=saved(more, tmp_path / "x.pkl"), **SMALL).left_out == ["rel_score.0"]


def test_without_attributes_in_the_weights_there_are_none(blobs: Blobs, tmp_path: Path) -> None:
    fewer = {k: v for k, v in blobs.items() if k not in ATTRIBUTE_LAYERS}
    made = build(weights=saved(fewer, tmp_path / "x.pkl"), **SMALL)
    with pytest.raises(ConfigError, match="have no attributes"):
        made.attributes(np.zeros((1, 128), np.float32))


def test_weights_are_data_and_never_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "run").touch, ())

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": {"conv1": Harmful()}}))
    torch.save({"conv1": Harmful()}, tmp_path / "bad.pth")
    for name in ("bad.pkl", "bad.pth"):
        with pytest.raises(CheckpointError, match="cannot read"):
            build(weights=str(tmp_path / name))
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="cannot read"):
        build(weights=str(tmp_path / "cut.npz"))
    with pytest.raises(CheckpointError, match="no such file"):
        build(weights=str(tmp_path / "missing.pth"))
    assert not (tmp_path / "run").exists()


def test_images_of_mixed_sizes_give_the_same_alone_and_together(encoder: BottomUp) -> None:
    images = [picture(40, 30), picture(25, 60, 1), picture(40, 30, 2)]
    for image, together in zip(images, encoder.extract(images), strict=True):
        (alone,) = encoder.extract([image])
        assert together.size == image.size
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(together.features, alone.features, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (700, 2)])
def test_tiny_and_narrow_images_do_not_fail(path: str, size: tuple[int, int], convention: str) -> None:
    made = build(weights=path, convention=convention, **SMALL)
    (found,) = made.extract([picture(*size)])
    assert len(found) >= 2
    assert found.boxes.min() >= 0
    assert (found.boxes <= np.array([*size, *size])).all()


def test_a_fixed_number_of_boxes(path: str) -> None:
    made = build(weights=path, **{**SMALL, "min_boxes": 7, "max_boxes": 7})
    assert len(made.extract([picture(40, 30)])[0]) == 8


def test_given_boxes_are_described_instead(encoder: BottomUp) -> None:
    image = picture(40, 30)
    (found,) = encoder.extract([image])
    (given,) = encoder.describe([image], [found.boxes[1:4]])
    np.testing.assert_array_equal(given.boxes, found.boxes[:4])
    np.testing.assert_allclose(given.features[1:], found.features[1:4], atol=1e-4, rtol=1e-3)
    for wrong in (np.zeros((0, 4)), np.zeros((2, 5))):
        with pytest.raises(DataError, match="boxes of image 0"):
            encoder.describe([image], [wrong])


def test_refined_boxes_move_as_the_best_class_says(path: str, encoder: BottomUp, blobs: Blobs) -> None:
    image = picture(40, 30)
    (plain,), (moved,) = encoder.extract([image]), build(weights=path, refine_boxes=True, **SMALL).extract([image])
    assert plain.classes is not None
    for row in range(1, len(plain)):
        label = int(plain.classes[row, 1:].argmax()) + 1
        deltas = blobs["bbox_pred"][0] @ plain.features[row] + blobs["bbox_pred"][1]
        expected = np.clip(shifted(plain.boxes[row], deltas[4 * label : 4 * label + 4]), 0, [39, 29, 39, 29])
        np.testing.assert_allclose(moved.boxes[row], expected, atol=1e-2)


def test_boxes_count_in_the_classes_in_which_they_are_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]])
    classes = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.9, 0.05, 0.05]])
    torch.testing.assert_close(kept_confidence(boxes, classes, 0.3, True), torch.tensor([0.6, 0.4, 0.05]))
    torch.testing.assert_close(kept_confidence(boxes, classes, 0.95, True), torch.tensor([0.6, 0.5, 0.05]))


def test_without_weights_nothing_is_extracted() -> None:
    made = build(width=2, blocks=(1, 1, 1, 1), hidden=4, classes=3, attributes=0, class_size=0, attribute_size=0)
    with pytest.raises(ConfigError, match="has no weights"):
        made.extract([picture(40, 30)])
    made.load_state_dict(made.state_dict())
    made.settings.short_side, made.settings.long_side = 32, 32
    (found,) = made.extract([picture(40, 30)])
    assert len(found) >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_sid": 5}, "did you mean 'short_side'"),
        ({"min_boxes": "thirty"}, "min_boxes"),
        ({"min_boxes": 40, "max_boxes": 36}, "40 is more than max_boxes 36"),
    ],
)
def test_options_that_cannot_work_are_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("mmbert.vision.encoders", "bottom_up").build(**options)


def test_options_make_an_equal_encoder(encoder: BottomUp) -> None:
    again = build(**encoder.options)
    again.load_state_dict(encoder.state_dict())
    assert again.identity == encoder.identity
    assert "weights" not in encoder.options


@pytest.mark.slow
def test_the_published_size_has_the_published_shapes() -> None:
    made = build(short_side=64, long_side=96, proposals=4, min_boxes=1)
    made.ready = True
    (found,) = made.extract([picture(40, 30)])
    assert found.features.shape[1] == 2048
    assert found.classes is not None and found.classes.shape[1] == 1601
    assert made.attributes(found.features).shape == (len(found), 401)
