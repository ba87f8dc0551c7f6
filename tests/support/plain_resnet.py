"""A ResNet with boxes written down plainly: convolutions one by one from a state dict, RoIAlign as loops over samples.

An independent computation for tests: nothing of ours or of torchvision is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """BatchNorm with fixed statistics, eps 1e-5."""
    weight, bias, mean, var = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def block(state: Mapping[str, Tensor], name: str, x: Tensor, stride: int, dilation: int, in_1x1: bool) -> Tensor:
    """1 x 1, 3 x 3, 1 x 1, and the input (or its projection) added."""
    first, second = (stride, 1) if in_1x1 else (1, stride)
    y = norm(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=first)).clamp(min=0)
    y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=second, padding=dilation, dilation=dilation)
    y = norm(state, f"{name}.bn2", y).clamp(min=0)
    y = norm(state, f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in state:
        x = norm(state, f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
    return (x + y).clamp(min=0)


def stage(
    state: Mapping[str, Tensor], name: str, x: Tensor, stride: int, dilation: int = 1, in_1x1: bool = True
) -> Tensor:
    """All blocks of a stage; the first has its stride."""
    blocks = len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})
    for number in range(blocks):
        x = block(state, f"{name}.{number}", x, stride if number == 0 else 1, dilation, in_1x1)
    return x


def feature_map(state: Mapping[str, Tensor], image: Tensor, in_1x1: bool = True) -> Tensor:
    """[1, 3, h, w] to the map at stride 16."""
    x = norm(state, "bn1", F.conv2d(image, state["conv1.weight"], stride=2, padding=3)).clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    for number, stride in ((1, 1), (2, 2), (3, 2)):
        x = stage(state, f"layer{number}", x, stride, in_1x1=in_1x1)
    return x


def roi_align(image_map: np.ndarray, box: np.ndarray, side: int = 14, scale: float = 1 / 16) -> np.ndarray:
    """[C, h, w] map and a box in pixels of the image to [C, side, side], one bilinear sample per bin."""
    x1, y1, x2, y2 = box.astype(np.float64) * scale
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    found = np.zeros((len(image_map), side, side))
    for row in range(side):
        for column in range(side):
            y, x = y1 + (row + 0.5) * height / side, x1 + (column + 0.5) * width / side
            found[:, row, column] = _bilinear(image_map, y, x)
    return found


def _bilinear(image_map: np.ndarray, y: float, x: float) -> np.ndarray:
    _, rows, columns = image_map.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return np.zeros(len(image_map))
    y, x = min(max(y, 0.0), rows - 1), min(max(x, 0.0), columns - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    upper = image_map[:, top, left] * (1 - (x - left)) + image_map[:, top, right] * (x - left)
    lower = image_map[:, bottom, left] * (1 - (x - left)) + image_map[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def region_features(
    state: Mapping[str, Tensor], image: Tensor, boxes: np.ndarray, masks: Tensor | None = None, dilated: bool = True
) -> Tensor:
    """[1, 3, h, w] normalised image and [n, 4] boxes to [n, 2048]."""
    image_map = feature_map(state, image)[0].double().numpy()
    cut = torch.from_numpy(np.stack([roi_align(image_map, box) for box in boxes])).float()
    last = stage(state, "layer4", cut, 1, dilation=2) if dilated else stage(state, "layer4", cut, 2)
    if masks is not None:
        step = masks.shape[-1] // last.shape[-1]
        last = last * masks.unflatten(-1, (-1, step)).unflatten(-3, (-1, step)).mean((-3, -1)).unsqueeze(1)
    return last.sum((2, 3)) / (last.shape[2] * last.shape[3])


def shake(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The state dict with statistics, scales and shifts that differ from those of a new network."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            made[key] = value.clone()
        elif key.endswith("running_var"):
            made[key] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.dim() == 1:
            made[key] = value + 0.1 * torch.randn(value.shape, generator=generator)
        else:
            made[key] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
    return made
