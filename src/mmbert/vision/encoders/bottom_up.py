"""Bottom-up attention: the Visual Genome detector whose regions VL-BERT and its kin were trained on.

Anderson et al. 2018 (arXiv:1707.07998): Faster R-CNN on ResNet-101, 1,600 classes and background, 400 attributes.
A region's box is the proposal itself, its features (2,048) the mean of the fifth stage inside it. Weights come from
the original or from one of its conversions; a conversion also tells how boxes are counted (see :class:`Options`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.ops import box_iou, nms

from mmbert.errors import CheckpointError, ConfigError
from mmbert.plugins import read_options
from mmbert.vision.encoders._bottom_up_network import (
    BottomUpNetwork,
    Shape,
    caffe_anchors,
    continuous_anchors,
    moved,
)
from mmbert.vision.encoders._bottom_up_weights import Convention, read_weights
from mmbert.vision.encoders._detectors import Detector, DetectorOptions, Found, best_boxes, load_state

BGR_MEAN = (102.9801, 115.9465, 122.7717)
SMALLEST_SIDE = 16
"""Pixels of the network's input: one place of its feature map."""
BEFORE_SUPPRESSION = 6000
PROPOSAL_OVERLAP = 0.7
SMALLEST_PROPOSAL = 16
"""Pixels of the image, in Caffe's convention; the other keeps whatever is not empty."""
DELTA_SCALE = {"caffe": (1.0, 1.0, 1.0, 1.0), "detectron2": (10.0, 10.0, 5.0, 5.0)}
"""What box deltas are divided by."""


class Options(DetectorOptions):
    """Options of :func:`build`; the defaults are the published setting with 10 to 100 boxes.

    36 boxes for every image: ``min_boxes=36``, ``max_boxes=36``.

    Attributes:
        weights: file of the original's blobs (``.npz`` or pickle) or of a conversion for detectron2.
        nms_threshold: overlap allowed between boxes of one class.
        proposals: boxes that are looked at.
        short_side, long_side: images are scaled so that the shorter side is this, the longer at most that.
        convention: how boxes are counted: ``caffe`` (corners are pixels of the box) or ``detectron2`` (points between
            pixels); None: as the weights tell.
        refine_boxes: move each box as its best class says; the published features were not.
        blocks, width, hidden, classes, attributes, class_size, attribute_size: sizes of the network; with weights,
            theirs.
    """

    nms_threshold: float = Field(0.3, gt=0, le=1)
    proposals: int = Field(300, ge=1)
    short_side: int = Field(600, ge=16)
    long_side: int = Field(1000, ge=16)
    convention: Convention | None = None
    refine_boxes: bool = False
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    width: int = 64
    hidden: int = 512
    classes: int = 1601
    attributes: int = 401
    class_size: int = 256
    attribute_size: int = 512

    def shape(self) -> Shape:
        return Shape(**{name: getattr(self, name) for name in Shape.__dataclass_fields__})


class BottomUp(Detector):
    """Regions of the bottom-up attention detector; see :class:`Options`."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.settings = options
        self.closed = options.convention != "detectron2"
        self.network = BottomUpNetwork(options.shape())
        self.network.proposals.anchors.copy_(caffe_anchors() if self.closed else continuous_anchors())
        self.feature_size = options.shape().feature_size
        self.requires_grad_(False)
        self.eval()

    def find(self, images: Sequence[Image.Image], boxes: Sequence[Tensor] | None) -> list[Found]:
        device = next(self.parameters()).device
        prepared = [self.prepare(image) for image in images]
        pixels = torch.stack([p for p, _ in prepared]).to(device)
        scale = torch.tensor([*prepared[0][1], *prepared[0][1]], device=device)
        maps = self.network.maps(pixels)
        if boxes is None:
            inside = self._propose(maps, (pixels.shape[2], pixels.shape[3]), scale)
        else:
            inside = [box * scale for box in boxes]
        features = self.network.features(maps, inside)
        predictions = self.network.predictor(features)
        counts = [len(box) for box in inside]
        parts = [features.split(counts), predictions.classes.softmax(1).split(counts), predictions.deltas.split(counts)]
        found = []
        for index, (feature, classes, deltas) in enumerate(zip(*parts, strict=True)):
            if boxes is not None:
                found.append(Found(boxes[index], feature, classes))
                continue
            box = inside[index] / scale
            confidence = kept_confidence(box, classes, self.settings.nms_threshold, self.closed)
            order = confidence.argsort(descending=True, stable=True)
            chosen = best_boxes(order, confidence, self.settings)
            box = self._refined(box, classes, deltas, images[index].size) if self.settings.refine_boxes else box
            found.append(Found(box[chosen], feature[chosen], classes[chosen]))
        return found

    @torch.inference_mode()
    def attributes(self, features: np.ndarray) -> np.ndarray:
        """[n, F] features of regions to [n, 401] probabilities of attributes; column 0: none.

        Raises:
            ConfigError: these weights have no attributes.
        """
        device = next(self.parameters()).device
        found = self.network.predictor(torch.as_tensor(features, device=device)).attributes
        if found is None:
            raise ConfigError("these weights of bottom-up attention have no attributes", hint="take those with them")
        return np.asarray(found.softmax(1).cpu())

    def prepare(self, image: Image.Image) -> tuple[Tensor, tuple[float, float]]:
        """[3, h, w] BGR minus the mean, at the network's size, and how much x and y grew.

        Caffe's convention resizes as OpenCV does: linearly, without smoothing, after taking the mean away; the sides
        are rounded but the scale is not. The other resizes as Pillow does.
        """
        mean = torch.tensor(BGR_MEAN).view(3, 1, 1)
        sides = image.size
        scale = self.settings.short_side / min(sides)
        if round(scale * max(sides)) > self.settings.long_side:
            scale = self.settings.long_side / max(sides)
        rgb = image.convert("RGB")
        if not self.closed:
            size = (max(int(sides[0] * scale + 0.5), SMALLEST_SIDE), max(int(sides[1] * scale + 0.5), SMALLEST_SIDE))
            pixels = _bgr(rgb.resize(size, Image.Resampling.BILINEAR)) - mean
            return pixels, (size[0] / sides[0], size[1] / sides[1])
        size = (max(round(sides[0] * scale), SMALLEST_SIDE), max(round(sides[1] * scale), SMALLEST_SIDE))
        x, y = (scale if round(s * scale) == new else new / s for s, new in zip(sides, size, strict=True))
        return _linear(_linear(_bgr(rgb) - mean, 2, size[0], x), 1, size[1], y), (x, y)

    def _propose(self, maps: Tensor, size: tuple[int, int], scale: Tensor) -> list[Tensor]:
        """The best proposals of each image, [n, 4] in pixels of the input; all of it where there is none."""
        objectness, deltas, anchors = self.network.proposals(maps)
        edge = torch.tensor([size[1], size[0]] * 2, device=maps.device) - float(self.closed)
        least = SMALLEST_PROPOSAL * float(scale.min()) if self.closed else 0.0
        found = []
        for scores, delta in zip(objectness, deltas, strict=True):
            boxes = moved(anchors, delta, self.closed).clamp(min=torch.zeros_like(edge), max=edge)
            sides = boxes[:, 2:] - boxes[:, :2] + float(self.closed)
            real = (sides >= least).all(1) & (sides > 0).all(1) & torch.isfinite(boxes).all(1)
            order = scores.argsort(descending=True, stable=True)
            if self.closed:  # Caffe drops small boxes before it takes the best, detectron2 after
                order = order[real[order]][:BEFORE_SUPPRESSION]
            else:
                order = order[:BEFORE_SUPPRESSION]
                order = order[real[order]]
            kept = nms(_open(boxes[order], self.closed), scores[order], PROPOSAL_OVERLAP)
            best = boxes[order][kept[: self.settings.proposals]]
            found.append(best if len(best) else torch.cat([torch.zeros_like(edge[:2]), edge[2:]])[None])
        return found

    def _refined(self, boxes: Tensor, classes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        label = classes[:, 1:].argmax(1) + 1
        chosen = deltas.view(len(boxes), -1, 4)[torch.arange(len(boxes), device=boxes.device), label]
        by = torch.tensor(DELTA_SCALE["caffe" if self.closed else "detectron2"], device=boxes.device)
        edge = torch.tensor([*size, *size], device=boxes.device) - float(self.closed)
        return moved(boxes, chosen / by, self.closed).clamp(min=torch.zeros_like(edge), max=edge)


def kept_confidence(boxes: Tensor, classes: Tensor, threshold: float, closed: bool) -> Tensor:
    """[n] highest score of each box among the classes in which suppression keeps it; 0 where in none.

    Args:
        boxes: [n, 4].
        classes: [n, C] scores; column 0, the background, does not count.
        threshold: overlap (IoU) above which the worse of two boxes goes, in each class by itself.

    Greedy suppression, all classes side by side: step k looks at every class's k-th best box.
    """
    scores = classes[:, 1:].T
    overlap = box_iou(_open(boxes, closed), _open(boxes, closed)) > threshold
    order = scores.argsort(dim=1, descending=True, stable=True)
    row = torch.arange(len(scores), device=scores.device)
    alive = torch.ones_like(scores, dtype=torch.bool)
    for step in range(len(boxes)):
        box = order[:, step]
        here = alive[row, box]
        alive &= ~(overlap[box] & here[:, None])
        alive[row, box] = here
    return torch.where(alive, scores, torch.zeros_like(scores)).amax(0)


def _open(boxes: Tensor, closed: bool) -> Tensor:
    """Boxes whose corners are points: a closed box ends where the next pixel starts."""
    return boxes + boxes.new_tensor([0, 0, 1, 1]) if closed else boxes


def _bgr(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)[:, :, ::-1].copy()).permute(2, 0, 1).float()


def _linear(pixels: Tensor, axis: int, size: int, scale: float) -> Tensor:
    """Linear interpolation along one axis; place i of the result lies at (i + 1/2) / scale - 1/2."""
    places = ((torch.arange(size, dtype=torch.float64) + 0.5) / scale - 0.5).clamp(0, pixels.shape[axis] - 1)
    before = places.floor().long()
    after = (before + 1).clamp(max=pixels.shape[axis] - 1)
    part = (places - before).to(pixels.dtype).view([-1 if a == axis else 1 for a in range(3)])
    return pixels.index_select(axis, before) * (1 - part) + pixels.index_select(axis, after) * part


def build(**options: Any) -> BottomUp:
    """Make the encoder; see :class:`Options`.

    Raises:
        ConfigError: an unknown option. CheckpointError: weights that cannot be read or do not fit.
    """
    checked = read_options(Options, options, "vision encoder 'bottom_up'")
    path = checked.weights
    if path is None:
        checked.convention = checked.convention or "caffe"
        encoder = BottomUp(checked)
    else:
        converted = read_weights(path)
        try:
            shape = asdict(Shape.of(converted.state))
        except KeyError as error:
            raise CheckpointError(f"weights do not fit: {error.args[0]} is missing", where=path) from error
        convention = checked.convention or converted.convention
        encoder = BottomUp(checked.model_copy(update={**shape, "convention": convention}))
        load_state(encoder.network, converted.state, path)
        encoder.left_out = converted.left_out
        encoder.loaded()
    encoder.options = encoder.settings.model_dump(exclude={"weights"})
    return encoder
