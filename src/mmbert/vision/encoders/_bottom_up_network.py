"""The network of bottom-up attention: Faster R-CNN on the fourth stage of a ResNet, with attributes.

Anderson et al. 2018, "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question Answering". Backbone
up to stage 4 (stride 16), a proposal network with 12 anchors per place, 14 x 14 RoI pooling, stage 5 with dilation 2
instead of stride 2, mean over the 14 x 14 places. Strides stand in the first 1 x 1 convolution of a stage, as in
Caffe's ResNet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_pool

STRIDE = 16
POOLED = 14
ANCHORS = 12
SCALES = (4, 8, 16, 32)
RATIOS = (0.5, 1.0, 2.0)
LARGEST_GROWTH = math.log(1000 / 16)


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        blocks: residual blocks of stages 2 to 5.
        width: channels after the first convolution.
        hidden: channels of the proposal network.
        classes, attributes: background (or "none") included.
        class_size, attribute_size: widths inside the attribute predictor.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    width: int = 64
    hidden: int = 512
    classes: int = 1601
    attributes: int = 401
    class_size: int = 256
    attribute_size: int = 512

    @property
    def feature_size(self) -> int:
        """Numbers per region (2,048)."""
        return self.width * 32

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Shape:
        """The sizes of a network with these tensors.

        Raises:
            KeyError: a tensor that tells one of them is missing.
        """
        counts = [len({k.split(".")[1] for k in state if k.startswith(f"res{n}.")}) for n in (2, 3, 4, 5)]
        attributes = "predictor.attributes.weight" in state
        return cls(
            blocks=(counts[0], counts[1], counts[2], counts[3]),
            width=state["stem.weight"].shape[0],
            hidden=state["proposals.conv.weight"].shape[0],
            classes=state["predictor.classes.weight"].shape[0],
            attributes=state["predictor.attributes.weight"].shape[0] if attributes else 0,
            class_size=state["predictor.class_embedding.weight"].shape[1] if attributes else 0,
            attribute_size=state["predictor.attribute_hidden.weight"].shape[0] if attributes else 0,
        )


class ConvNorm(nn.Conv2d):
    """A convolution without bias, then a frozen BatchNorm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (size // 2)
        super().__init__(inputs, outputs, size, stride, padding, dilation, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Bottleneck(nn.Module):
    """1 x 1 (with the stride), 3 x 3, 1 x 1, and the shortcut."""

    def __init__(self, inputs: int, inner: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, inner, 1, stride)
        self.conv2 = ConvNorm(inner, inner, 3, dilation=dilation)
        self.conv3 = ConvNorm(inner, inner * 4, 1)
        self.shortcut = ConvNorm(inputs, inner * 4, 1, stride) if inputs != inner * 4 else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (inner + (x if self.shortcut is None else self.shortcut(x))).relu()


class ProposalNetwork(nn.Module):
    """Scores and moves the anchors."""

    anchors: Tensor

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.objectness = nn.Conv2d(hidden, ANCHORS, 1)
        self.deltas = nn.Conv2d(hidden, 4 * ANCHORS, 1)
        self.register_buffer("anchors", torch.zeros(ANCHORS, 4))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[I, 1024, h, w] to objectness logits [I, h * w * 12], deltas [I, h * w * 12, 4] and anchors [h * w * 12, 4].

        Anchors are in pixels of the network's input.
        """
        hidden = self.conv(maps).relu()
        objectness = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(maps), -1, 4)
        rows, columns = maps.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = (torch.stack([x, y, x, y], -1) * STRIDE).to(self.anchors)
        return objectness, deltas, (places[:, :, None] + self.anchors).reshape(-1, 4)


class Predictions(NamedTuple):
    """For R regions: [R, classes] logits (background first), [R, 4 * classes] box deltas, [R, attributes] logits."""

    classes: Tensor
    deltas: Tensor
    attributes: Tensor | None


class Predictor(nn.Module):
    """Class, box and attributes of a region from its features; the attributes also know the likeliest class."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = shape.feature_size
        self.classes = nn.Linear(size, shape.classes)
        self.deltas = nn.Linear(size, 4 * shape.classes)
        self.has_attributes = shape.attributes > 0
        if self.has_attributes:
            self.class_embedding = nn.Embedding(shape.classes, shape.class_size)
            self.attribute_hidden = nn.Linear(size + shape.class_size, shape.attribute_size)
            self.attributes = nn.Linear(shape.attribute_size, shape.attributes)

    def forward(self, features: Tensor) -> Predictions:
        classes = self.classes(features)
        if not self.has_attributes:
            return Predictions(classes, self.deltas(features), None)
        both = torch.cat([features, self.class_embedding(classes.argmax(1))], 1)
        return Predictions(classes, self.deltas(features), self.attributes(self.attribute_hidden(both).relu()))


class BottomUpNetwork(nn.Module):
    """Feature map, proposals, region features, predictions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = ConvNorm(3, shape.width, 7, 2)
        size = shape.width
        for stage, (count, stride, dilation) in enumerate(
            zip(shape.blocks, (1, 2, 2, 1), (1, 1, 1, 2), strict=True), start=2
        ):
            inner = shape.width * 2 ** (stage - 2)
            blocks = [
                Bottleneck(size if n == 0 else inner * 4, inner, stride if n == 0 else 1, dilation)
                for n in range(count)
            ]
            self.add_module(f"res{stage}", nn.Sequential(*blocks))
            size = inner * 4
        self.proposals = ProposalNetwork(size // 2, shape.hidden)
        self.predictor = Predictor(shape)

    def maps(self, pixels: Tensor) -> Tensor:
        """[I, 3, H, W] BGR minus their mean to [I, 1024, H / 16, W / 16]."""
        x = F.max_pool2d(self.stem(pixels).relu(), 3, 2, ceil_mode=True)  # Caffe's pooling: no padding, size up
        return self.get_submodule("res4")(self.get_submodule("res3")(self.get_submodule("res2")(x)))

    def features(self, maps: Tensor, boxes: list[Tensor], batch: int = 64) -> Tensor:
        """[R, 2048] features of boxes ([n, 4] per image, pixels of the input), ``batch`` of them at a time."""
        rows = torch.cat([torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)])
        last = self.get_submodule("res5")
        return torch.cat([last(roi_pool(maps, part, POOLED, 1 / STRIDE)).mean((2, 3)) for part in rows.split(batch)])


def caffe_anchors() -> Tensor:
    """[12, 4] anchors of py-faster-rcnn around a 16-pixel cell: ratios, within them scales; sides are rounded.

    Ren et al. 2015, "Faster R-CNN". Corners are pixels that belong to the box: a side is x2 - x1 + 1.
    """
    found = []
    for ratio in RATIOS:
        width = round(math.sqrt(STRIDE * STRIDE / ratio))
        height = round(width * ratio)
        for scale in SCALES:
            w, h = width * scale, height * scale
            middle = (STRIDE - 1) / 2
            found.append([middle - (w - 1) / 2, middle - (h - 1) / 2, middle + (w - 1) / 2, middle + (h - 1) / 2])
    return torch.tensor(found)


def continuous_anchors() -> Tensor:
    """[12, 4] anchors of detectron2 around the cell's corner: scales, within them ratios; sides are exact."""
    found = []
    for scale in SCALES:
        for ratio in RATIOS:
            width = STRIDE * scale / math.sqrt(ratio)
            found.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
    return torch.tensor(found)


def moved(boxes: Tensor, deltas: Tensor, closed: bool) -> Tensor:
    """Boxes [n, 4] moved by deltas [n, 4] (of centre, relative to the side; of the log side), Girshick et al. 2014.

    Args:
        closed: corners are pixels of the box, so that a side is x2 - x1 + 1 (Caffe's convention).
    """
    sides = boxes[:, 2:] - boxes[:, :2] + float(closed)
    middle = boxes[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].clamp(max=LARGEST_GROWTH).exp() / 2
    return torch.cat([middle - half, middle + half], 1)
