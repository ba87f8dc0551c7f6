"""Grid encoder: any timm backbone; the cells of its last feature map are the regions.

No detector is needed: cell boxes are known beforehand, the whole image (mean of the cells) is region 0. It can look
into boxes that come with an image, too: each cut out of the pixels and encoded by itself, or out of the feature map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import timm
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmbert.errors import ConfigError
from mmbert.model.packed import Pixels, RegionTable
from mmbert.plugins import read_options
from mmbert.vision.encoders._given_boxes import (
    ALIGNED_SIDE,
    boxes_in_input,
    covered_mean,
    cut_maps,
    cut_pixels,
    squashed,
)
from mmbert.vision.encoders._grid_weights import (
    create_backbone,
    fold_batch_norms,
    load_backbone_weights,
    save_all_buffers,
)
from mmbert.vision.encoders.base import VisionEncoder

CUT_OUTS_AT_ONCE = 256
"""Boxes that go through the backbone together; more would only take memory."""


class Options(BaseModel):
    """Options of :func:`build`: those of :class:`GridEncoder`, and ``weights``, a checkpoint of the backbone."""

    model_config = ConfigDict(extra="forbid")

    backbone: str
    weights: str | None = None
    image_size: int = 224
    trainable: bool = False
    freeze_norm: bool = True
    levels: list[int] | None = None
    fold_norm: bool = False
    classes: bool = False
    given_boxes: Literal["crop", "align"] | None = None
    cells: bool = True
    crop_from: int = 512
    mean: list[float] | None = None
    std: list[float] | None = None


class GridEncoder(VisionEncoder):
    """Cells of a backbone's feature map as regions.

    Args:
        backbone: name of a timm model (CNN or ViT).
        image_size: S, side of the input.
        trainable: train the backbone with the rest; else it is frozen and stays in eval mode.
        freeze_norm: BatchNorm keeps its statistics while training.
        levels: earlier feature levels (timm's numbers) joined to the last map, brought to its grid by averaging.
            Several depths together generalise better across drawing styles than the last alone.
        fold_norm: merge BatchNorms into the convolutions before them (frozen statistics; a third faster to train).
        classes: also give each cell's distribution from the backbone's own classifier
            (targets for masked-region classification); not together with ``levels``.
        given_boxes: how boxes that come with an image are looked into, behind the encoder's own regions. ``crop``: each
            is cut out of the image, brought to the input's size and encoded as an image of its own (its region is the
            mean of its cells, as that of a whole image); exact for small objects, at the cost of an image each.
            ``align``: cut out of the whole image's feature map (RoIAlign); costs next to nothing, and small objects
            need a large ``image_size``. None: boxes are not looked at.
        cells: the cells of the whole image are regions; False (with ``given_boxes``) leaves them out.
        crop_from: longer side in pixels that images keep for ``crop``.
        mean, std: pixel normalisation, as the backbone was trained; None takes timm's values.

    Raises:
        ConfigError: options that do not go together, or a backbone that gives no such maps.
    """

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int = 224,
        trainable: bool = False,
        freeze_norm: bool = True,
        levels: list[int] | None = None,
        fold_norm: bool = False,
        classes: bool = False,
        given_boxes: Literal["crop", "align"] | None = None,
        cells: bool = True,
        crop_from: int = 512,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if given_boxes is None and not cells:
            raise ConfigError("vision: without cells there is nothing to see", hint="set given_boxes: crop, or align")
        if classes and levels:
            raise ConfigError("vision: classes need the last feature map alone, so they do not go with levels")
        self.name = backbone
        self.backbone: Any = create_backbone(backbone, image_size, keep_classifier=classes)
        save_all_buffers(self.backbone)
        data = timm.data.resolve_model_data_config(self.backbone)
        self.fold_norm = fold_norm
        if fold_norm:
            fold_batch_norms(self.backbone)
        self.levels = list(levels or [])
        self.image_size = image_size
        self.trainable = trainable
        self.freeze_norm = freeze_norm
        self.classes = classes
        self.given_boxes, self.takes_boxes = given_boxes, given_boxes is not None
        self.cells, self.crop_from = cells, max(crop_from, image_size)
        self.prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        self.last_size = int(self.backbone.num_features)
        self.layout = "channels first"
        self.mean, self.std = mean or list(data["mean"]), std or list(data["std"])
        try:
            self.rows, self.columns, self.part_sizes = self._measure()
        except Exception as error:  # timm's models complain in many ways
            raise ConfigError(
                f"vision: {backbone} gives no such feature maps: {error or type(error).__name__}",
                hint="check image_size and levels",
            ) from error
        self.feature_size = sum(self.part_sizes)
        self.regions_per_image = 1 + self.rows * self.columns if cells else 1
        self.freeze()
        self.train(self.training)

    def quick(self) -> GridEncoder:
        """A copy with its norms folded where that fits, and weights in the order that convolutions read fastest."""
        made = copy.deepcopy(self)
        if not self.fold_norm:
            try:
                fold_batch_norms(made.backbone)
            except ConfigError:  # not a backbone of that kind; the copy may be half folded
                made = copy.deepcopy(self)
        made.backbone.to(memory_format=torch.channels_last)
        made.__dict__["_fixed_identity"] = self.identity
        return made.eval()

    def freeze(self) -> None:
        """Train the whole backbone (biases that folded norms left behind too) or nothing; never the classifier."""
        self.backbone.requires_grad_(self.trainable)
        if self.classes:
            self.backbone.get_classifier().requires_grad_(False)

    def train(self, mode: bool = True) -> GridEncoder:
        super().train(mode)
        if not self.trainable:
            self.backbone.eval()
        elif self.freeze_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def boxes(self, width: int, height: int) -> np.ndarray:
        """[1 + rows * columns, 4]: the whole image (0, 0, w-1, h-1), then cells row by row (if they are regions)."""
        whole = np.array([[0, 0, width - 1, height - 1]], dtype=np.float32)
        if not self.cells:
            return whole
        xs = np.linspace(0, width - 1, self.columns + 1, dtype=np.float32)
        ys = np.linspace(0, height - 1, self.rows + 1, dtype=np.float32)
        left, top = np.meshgrid(xs[:-1], ys[:-1])
        right, bottom = np.meshgrid(xs[1:], ys[1:])
        cells = np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)
        return np.concatenate([whole, cells])

    def place(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """[m, 4] given boxes, cut at the edges of the image."""
        return np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32)).astype(np.float32)

    def prepare(self, image: Image.Image) -> Tensor:
        """As in the base class; for boxes that are cut out, only made smaller (and at most to ``crop_from``)."""
        if self.given_boxes != "crop":
            return super().prepare(image)
        scale = min(1.0, self.crop_from / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resized = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def forward(self, pixels: Pixels, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        """[I, 3, S, S] to [N, F] features (and class distributions); see :class:`VisionEncoder`."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            seen = squashed(pixels, self.image_size) if self.takes_boxes else pixels
            assert isinstance(seen, Tensor)
            maps = self._feature_map(seen)
            whole = maps.mean(1, keepdim=True)
            own = torch.cat([whole, maps], dim=1) if self.cells else whole
            features = self._with_given(pixels, table, own, maps) if self.takes_boxes else own.flatten(0, 1)
        return features, self._distribution(features) if self.classes else None

    def _with_given(self, pixels: Pixels, table: RegionTable, own: Tensor, maps: Tensor) -> Tensor:
        """[N, F]: each image's own regions [I, n, F], and behind them those of its boxes."""
        images = table.image_numbers
        if images is None:
            raise ValueError("the region table does not say of which image each box is (image_numbers)")
        counts = torch.bincount(images, minlength=len(own))
        place = torch.arange(len(images), device=images.device) - (counts.cumsum(0) - counts)[images]
        given = place >= self.regions_per_image
        features = own.new_zeros(len(images), self.feature_size)
        features[~given] = own.flatten(0, 1)
        rows = given.nonzero().squeeze(1)
        if len(rows):
            masks = None if table.masks is None else table.masks[rows]
            cells, shape = self._cells_of(pixels, table, rows, maps)
            features[rows] = covered_mean(cells, shape, masks)
        return features

    def _cells_of(
        self, pixels: Pixels, table: RegionTable, rows: Tensor, maps: Tensor
    ) -> tuple[Tensor, tuple[int, int]]:
        """[n, cells, F] what is in the boxes of these rows, and rows and columns of the cells."""
        if self.given_boxes == "align":
            assert table.image_numbers is not None
            grids = maps.transpose(1, 2).unflatten(2, (self.rows, self.columns))
            boxes = boxes_in_input(table, rows, self.rows, self.columns)
            return cut_maps(grids, boxes, table.image_numbers[rows]), (ALIGNED_SIDE, ALIGNED_SIDE)
        cut = cut_pixels(pixels, table, rows, self.image_size)
        found = torch.cat([self._feature_map(part) for part in cut.split(CUT_OUTS_AT_ONCE)])
        return found, (self.rows, self.columns)

    def _feature_map(self, pixels: Tensor) -> Tensor:
        """[I, cells, F] cells row by row."""
        # Plain numbers, not buffers: a checkpoint in fp16 would round them.
        dtype = next(self.backbone.parameters()).dtype
        mean, std = (torch.tensor(v, dtype=dtype, device=pixels.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        scaled = pixels.to(dtype) / 255 if pixels.dtype == torch.uint8 else pixels.to(dtype)
        normalised = ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)
        with _full_precision_convolutions(normalised):
            return torch.cat([m.flatten(2) for m in self._maps(normalised)], dim=1).transpose(1, 2)

    def _maps(self, normalised: Tensor) -> list[Tensor]:
        """Feature maps [I, C, rows, columns]: the chosen levels, then the last."""
        if not self.levels:
            return [self._as_map(self.backbone.forward_features(normalised))]
        last, found = self.backbone.forward_intermediates(normalised, indices=self.levels)
        last = self._as_map(last)
        grid = (int(last.shape[2]), int(last.shape[3]))
        return [_pooled(m, grid) for m in found] + [last]

    def _as_map(self, found: Tensor) -> Tensor:
        """Any backbone's last features as [I, C, rows, columns]."""
        if found.dim() == 4:
            return found.permute(0, 3, 1, 2) if self._channels_last(found) else found
        cells = found[:, self.prefix_tokens :]
        grid = getattr(getattr(self.backbone, "patch_embed", None), "grid_size", None) or ()
        if math.prod(grid) != cells.shape[1] or len(grid) != 2:  # the tokens were pooled on the way, or it does not say
            grid = (math.isqrt(cells.shape[1]),) * 2
        if math.prod(grid) != cells.shape[1]:
            raise ConfigError(f"{cells.shape[1]} tokens are no grid")
        return cells.transpose(1, 2).unflatten(2, tuple(grid))

    def _channels_last(self, found: Tensor) -> bool:
        return found.shape[-1] == self.last_size and found.shape[1] != self.last_size

    def _distribution(self, features: Tensor) -> Tensor:
        """[R, F] to [R, C]: the backbone's own head, applied to a map (or to tokens) of nothing but that cell."""
        with torch.no_grad():
            cells = features.detach()
            if self.layout == "tokens":
                cells = cells[:, None].expand(-1, self.prefix_tokens + 1, -1)
            else:
                cells = cells[:, None, None] if self.layout == "channels last" else cells[:, :, None, None]
            return torch.softmax(self.backbone.forward_head(cells).float(), dim=-1)

    @torch.no_grad()
    def _measure(self) -> tuple[int, int, list[int]]:
        """Rows and columns of the grid, and the channels of each joined map."""
        was_training = self.backbone.training
        self.backbone.eval()
        blank = torch.zeros(1, 3, self.image_size, self.image_size)
        maps = self._maps(blank)
        if self.classes:
            last = self.backbone.forward_features(blank)
            channels = "channels last" if last.dim() == 4 and self._channels_last(last) else "channels first"
            self.layout = channels if last.dim() == 4 else "tokens"
        self.backbone.train(was_training)
        return maps[-1].shape[2], maps[-1].shape[3], [m.shape[1] for m in maps]


def _pooled(found: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map [I, C, h, w] brought to the grid by averaging; while it is traced, by fixed windows where these fit."""
    height, width = int(found.shape[2]), int(found.shape[3])
    if torch.jit.is_tracing() and not (height % grid[0] or width % grid[1]):
        return nn.functional.avg_pool2d(found, (height // grid[0], width // grid[1]))
    return nn.functional.adaptive_avg_pool2d(found, grid)


@contextmanager
def fixed_sizes() -> Iterator[None]:
    """While this lasts, tracing sees the padding that timm computes from an image's size as numbers."""
    own = timm.layers.padding.get_same_padding
    timm.layers.padding.get_same_padding = lambda size, *rest: own(int(size), *rest)
    try:
        yield
    finally:
        timm.layers.padding.get_same_padding = own


def _full_precision_convolutions(pixels: Tensor) -> AbstractContextManager[object]:
    """On a CPU, training depthwise convolutions in bf16 measured 40 % slower than in fp32: autocast stays out."""
    if pixels.device.type == "cpu" and torch.is_grad_enabled():
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def build(**options: Any) -> GridEncoder:
    """Make the encoder from ``config.vision`` without its ``kind``; see :class:`Options`.

    Raises:
        ConfigError: an unknown option, or a backbone or size that cannot be. CheckpointError: weights that do not fit.
    """
    checked = read_options(Options, options, "vision encoder 'grid'")
    encoder = GridEncoder(**checked.model_dump(exclude={"weights"}))
    encoder.options = checked.model_dump(exclude={"weights"}, exclude_unset=True)
    if checked.weights is not None:
        load_backbone_weights(encoder, checked.weights)
    return encoder


__all__ = ["GridEncoder", "build", "fixed_sizes", "fold_batch_norms", "load_backbone_weights"]
