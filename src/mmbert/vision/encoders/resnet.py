"""End-to-end region encoder: a ResNet whose last stage looks into given boxes (VL-BERT's "fast R-CNN" part).

Images keep their aspect ratio. Those of one size go through the network together, so that nothing is padded and an
image gives the same regions alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import roi_align

from mmbert.errors import ConfigError
from mmbert.model.packed import Pixels, RegionTable
from mmbert.vision.encoders._given_boxes import boxes_in_input, of_one_size
from mmbert.vision.encoders._resnet_weights import load_backbone_weights
from mmbert.vision.encoders.base import VisionEncoder

DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Layers to blocks per stage (He et al., 2016, table 1; the two smallest are for trials)."""
STRIDE = 16
"""Pixels per cell of the map that boxes are cut out of."""
ROI_SIDE = 14
ROIS_AT_ONCE = 64
"""Boxes that go through the last stage together; more would only take memory."""
CAFFE_MEANS = (102.9801, 115.9465, 122.7717)
"""Mean blue, green and red of ImageNet, as the detectors of the Caffe time subtract them."""


class BoxResNet(VisionEncoder):
    """ResNet up to stride 16, RoIAlign on each box, the last stage on each of them, average (He et al., 2017, C4 head).

    Args:
        layers: 50, 101 or 152 (14 and 26 for trials).
        dilated: the last stage keeps the 14 x 14 resolution (dilation 2); else its first block halves it.
        stride_in_1x1: a stage's stride is in its first 1 x 1 convolution (Caffe), else in the 3 x 3 (torchvision).
        frozen_stages: stages without gradient: 1 is the stem, 2 to 5 the residual stages.
        frozen_norm: scales and shifts of BatchNorm have no gradient (its statistics are always fixed).
        blank_hidden: hidden regions are blanked in the pixels (the originals' MASK_RAW_PIXELS).
        short_side, long_side: an image is resized to the first, unless its longer side would pass the second.
        bgr: channel order of the network's input.
        mean, std: per channel in that order, of pixels in 0..255.
    """

    regions_per_image = 1
    takes_boxes = True
    feature_size = 2048

    def __init__(
        self,
        layers: int = 101,
        *,
        dilated: bool = True,
        stride_in_1x1: bool = True,
        frozen_stages: Sequence[int] = (1, 2),
        frozen_norm: bool = True,
        blank_hidden: bool = False,
        short_side: int = 600,
        long_side: int = 1000,
        bgr: bool = True,
        mean: Sequence[float] = CAFFE_MEANS,
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if layers not in DEPTHS:
            raise ConfigError(f"vision: no ResNet of {layers} layers", hint=f"one of {', '.join(map(str, DEPTHS))}")
        if not set(frozen_stages) <= set(range(1, 6)):
            raise ConfigError(f"vision: frozen_stages {list(frozen_stages)}: stages are 1 to 5")
        if not 16 <= short_side <= long_side:
            raise ConfigError(f"vision: short_side {short_side} must be 16 to long_side, which is {long_side}")
        self.blanks_hidden = blank_hidden
        self.frozen_stages, self.frozen_norm = list(frozen_stages), frozen_norm
        self.short_side, self.long_side = short_side, long_side
        self.bgr, self.mean, self.std = bgr, list(mean), list(std)
        network = ResNet(Bottleneck, list(DEPTHS[layers]))
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.relu, self.maxpool = network.relu, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            network.layer1, network.layer2, network.layer3, network.layer4,
        )  # fmt: skip
        for stage in (self.layer2, self.layer3, self.layer4):
            _set_stride(stage, 1 if dilated and stage is self.layer4 else 2, stride_in_1x1)
        if dilated:
            for block in self.layer4:
                block.conv2.dilation = block.conv2.padding = (2, 2)
        self.freeze()
        self.train(self.training)

    def freeze(self) -> None:
        """No gradient for frozen stages, nor for BatchNorm where ``frozen_norm`` says so."""
        self.requires_grad_(True)
        for number in self.frozen_stages:
            for part in (self.conv1, self.bn1) if number == 1 else (getattr(self, f"layer{number - 1}"),):
                part.requires_grad_(False)
        if self.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> BoxResNet:
        """Statistics of BatchNorm stay fixed in training."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> Iterator[nn.BatchNorm2d]:
        return (module for module in self.modules() if isinstance(module, nn.BatchNorm2d))

    # -- images and boxes ----------------------------------------------------------------------------------------------

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image is resized to."""
        short, long = sorted((width, height))
        side = self.short_side
        if side * long > self.long_side * short:
            side = max(1, round(self.long_side * short / long))
        other = int(side * long / short)
        return (side, other) if width <= height else (other, side)

    def prepare(self, image: Image.Image) -> Tensor:
        """An image of any size to [bands, h, w] uint8."""
        resized = image.resize(self.input_size(*image.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def boxes(self, width: int, height: int) -> np.ndarray:
        """[1, 4]: the whole image."""
        return self.place(np.array([[0, 0, width - 1, height - 1]], dtype=np.float32), width, height)

    def place(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """[m, 4] boxes, cut at the last pixel that is left of the image when it has been resized."""
        last = [(new - 1) * old / new for new, old in zip(self.input_size(width, height), (width, height), strict=True)]
        return np.clip(boxes, 0, np.array([*last, *last], dtype=np.float32)).astype(np.float32)

    # -- the network ---------------------------------------------------------------------------------------------------

    def forward(self, pixels: Pixels, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        """[N, 2048] features of the table's boxes; the class distributions are those that came with the boxes."""
        if table.image_numbers is None:
            raise ValueError("the region table does not say of which image each box is (image_numbers)")
        cut, order = [], []
        for numbers in of_one_size(pixels):
            images = torch.stack([pixels[number] for number in numbers])
            wanted = torch.tensor(numbers, device=images.device)
            rows = torch.isin(table.image_numbers, wanted).nonzero().squeeze(1)
            local = torch.searchsorted(wanted, table.image_numbers[rows])
            boxes = boxes_in_input(table, rows, images.shape[2], images.shape[3])
            normalised = self.normalised(images)
            if table.hidden is not None:
                hidden = table.hidden[rows]
                normalised = _blanked(normalised, boxes[hidden], local[hidden])
            cut.append(cut_out(self.feature_map(normalised), boxes, local))
            order.append(rows)
        maps = torch.cat(cut)[torch.cat(order).argsort()]
        return self.features_of(maps, table.masks), None

    def feature_map(self, normalised: Tensor) -> Tensor:
        """[I, 3, h, w] normalised pixels to [I, 1024, h / 16, w / 16] (rounded up)."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(normalised))))
        return self.layer3(self.layer2(self.layer1(stem)))

    def features_of(self, maps: Tensor, masks: Tensor | None = None) -> Tensor:
        """[N, 1024, 14, 14] cut-out maps to [N, 2048].

        A mask [N, m, m] multiplies the last stage's map; the average still divides by all of its cells.
        """
        parts = []
        for n, part in enumerate(maps.split(ROIS_AT_ONCE)):
            last = self.layer4(part)
            if masks is not None:
                own = masks[n * ROIS_AT_ONCE :][: len(part)].to(last.dtype).unsqueeze(1)
                if own.shape[-2:] != last.shape[-2:]:
                    own = nn.functional.adaptive_avg_pool2d(own, (last.shape[-2], last.shape[-1]))
                last = last * own
            parts.append(last.mean((2, 3)))
        return torch.cat(parts) if parts else maps.new_zeros(0, self.feature_size)

    def normalised(self, images: Tensor) -> Tensor:
        """Less mean, over deviation; computed in the type of the pixels if that is the more exact."""
        dtype = self.conv1.weight.dtype
        exact = torch.promote_types(torch.promote_types(images.dtype, dtype), torch.float32)
        values = images.to(exact) * (1 if images.dtype == torch.uint8 else 255)
        # Plain numbers, not buffers: a checkpoint in fp16 would round them.
        mean, std = (torch.tensor(v, dtype=exact, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (((values.flip(1) if self.bgr else values) - mean) / std).to(dtype)


def cut_out(maps: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
    """RoIAlign, one sample in the middle of each of 14 x 14 bins, without the half-pixel shift (He et al., 2017).

    Args:
        maps: [I, C, h, w] at stride 16.
        boxes: [n, 4] x1, y1, x2, y2 in pixels of the input.
        images: [n] which image each is in.

    Returns:
        [n, C, 14, 14].
    """
    exact = torch.promote_types(maps.dtype, torch.float32)  # half precision would move boxes by whole pixels
    rois = torch.cat([images.to(exact).unsqueeze(1), boxes.to(exact)], dim=1)
    found = roi_align(maps.to(exact), rois, (ROI_SIDE, ROI_SIDE), 1 / STRIDE, sampling_ratio=1, aligned=False)
    return found.to(maps.dtype)


def _blanked(images: Tensor, boxes: Tensor, numbers: Tensor) -> Tensor:
    """[I, 3, h, w] with 0 (the mean colour) in every pixel that a box [K, 4] of image ``numbers`` [K] touches."""
    across, down = (torch.arange(n, device=images.device) for n in (images.shape[3], images.shape[2]))
    x1, y1, x2, y2 = boxes.floor().unsqueeze(2).unbind(1)
    inside = ((down >= y1) & (down <= y2)).unsqueeze(2) & ((across >= x1) & (across <= x2)).unsqueeze(1)
    covered = torch.stack([inside[numbers == number].any(0) for number in range(len(images))])
    return images.masked_fill(covered.unsqueeze(1), 0.0)


def _set_stride(stage: nn.Sequential, stride: int, in_1x1: bool) -> None:
    """Let the first block of a stage halve the resolution (or not) where it is meant to."""
    first: Any = stage[0]
    first.conv1.stride = (stride, stride) if in_1x1 else (1, 1)
    first.conv2.stride = (1, 1) if in_1x1 else (stride, stride)
    first.downsample[0].stride = (stride, stride)


def build(**options: Any) -> BoxResNet:
    """Make the encoder from ``config.vision`` without its ``kind``."""
    try:
        encoder = BoxResNet(**options)
    except TypeError as error:
        raise ConfigError(f"vision encoder 'resnet': {error}") from error
    encoder.options = dict(options)
    return encoder


__all__ = ["BoxResNet", "build", "cut_out", "load_backbone_weights"]
