"""Grid encoder: any timm backbone; the cells of its last feature map are the regions.

No detector is needed: cell boxes are known beforehand, the whole image (mean of the cells) is region 0.
"""

from __future__ import annotations

import copy
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import timm
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.packed import RegionTable
from mmbert.plugins import nearest
from mmbert.vision.encoders._detectors import parse
from mmbert.vision.encoders.base import VisionEncoder


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
        mean, std: pixel normalisation, as the backbone was trained; None takes timm's values.
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
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if classes and levels:
            raise ConfigError("vision: classes need the last feature map alone, so they do not go with levels")
        self.name = backbone
        self.backbone: Any = _create(backbone, image_size, keep_classifier=classes)
        _save_all_buffers(self.backbone)
        data = timm.data.resolve_model_data_config(self.backbone)
        self.fold_norm = fold_norm
        if fold_norm:
            fold_batch_norms(self.backbone)
        self.levels = list(levels or [])
        self.image_size = image_size
        self.trainable = trainable
        self.freeze_norm = freeze_norm
        self.classes = classes
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
        self.regions_per_image = 1 + self.rows * self.columns
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
        """[1 + rows * columns, 4]: the whole image (0, 0, w-1, h-1), then cells row by row."""
        xs = np.linspace(0, width - 1, self.columns + 1, dtype=np.float32)
        ys = np.linspace(0, height - 1, self.rows + 1, dtype=np.float32)
        left, top = np.meshgrid(xs[:-1], ys[:-1])
        right, bottom = np.meshgrid(xs[1:], ys[1:])
        cells = np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)
        return np.concatenate([np.array([[0, 0, width - 1, height - 1]], dtype=np.float32), cells])

    def forward(self, pixels: Tensor, table: RegionTable) -> tuple[Tensor, Tensor | None]:
        """[I, 3, S, S] to [I * n, F] features (and class distributions); see :class:`VisionEncoder`."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            maps = self._feature_map(pixels)
        whole = maps.mean(1, keepdim=True)
        features = torch.cat([whole, maps], dim=1).flatten(0, 1)
        return features, self._distribution(features) if self.classes else None

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
        grid = (last.shape[2], last.shape[3])
        return [nn.functional.adaptive_avg_pool2d(m, grid) for m in found] + [last]

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


def _full_precision_convolutions(pixels: Tensor) -> AbstractContextManager[object]:
    """On a CPU, training depthwise convolutions in bf16 measured 40 % slower than in fp32: autocast stays out."""
    if pixels.device.type == "cpu" and torch.is_grad_enabled():
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def fold_batch_norms(backbone: nn.Module) -> None:
    """Merge every BatchNorm that directly follows a convolution of its own width into it, in place.

    The merged network computes what the original does with frozen statistics; timm's fused activation stays.

    Raises:
        ConfigError: a BatchNorm is left over, so the backbone is not of the kind that can be folded.
    """
    backbone.eval()
    for parent in list(backbone.modules()):
        previous: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                if previous is None or previous[1].out_channels != child.num_features:
                    raise ConfigError("vision: fold_norm does not fit this backbone", hint="leave it out")
                setattr(parent, previous[0], fuse_conv_bn_eval(previous[1], child))
                rest = [m for n, m in child.named_children() if n in ("drop", "act")]
                setattr(parent, name, nn.Sequential(*rest) if rest else nn.Identity())
                previous = None
            elif isinstance(child, nn.Conv2d):
                previous = (name, child)
            elif not isinstance(child, nn.Identity):  # an activation in between, say, does not let a norm through
                previous = None


def _save_all_buffers(backbone: nn.Module) -> None:
    """Make all buffers part of checkpoints; those that no checkpoint holds come back empty from ``from_pretrained``."""
    for module in backbone.modules():
        module._non_persistent_buffers_set.clear()


def _create(backbone: str, image_size: int, keep_classifier: bool) -> Any:
    if not timm.is_model(backbone):
        close = nearest(backbone, timm.list_models())
        raise ConfigError(f"timm has no model {backbone!r}", hint=f"did you mean {close!r}?" if close else None)
    options: dict[str, Any] = {} if keep_classifier else {"num_classes": 0}
    try:  # ViTs must be told the input size, CNNs do not know the argument
        return timm.create_model(backbone, pretrained=False, img_size=image_size, **options)
    except TypeError:
        return timm.create_model(backbone, pretrained=False, **options)


def build(**options: Any) -> GridEncoder:
    """Make the encoder from ``config.vision`` without its ``kind``; see :class:`Options`.

    Raises:
        ConfigError: an unknown option, or a backbone or size that cannot be. CheckpointError: weights that do not fit.
    """
    checked = parse(Options, "grid", options)
    encoder = GridEncoder(**checked.model_dump(exclude={"weights"}))
    encoder.options = checked.model_dump(exclude={"weights"}, exclude_unset=True)
    if checked.weights is not None:
        load_backbone_weights(encoder, checked.weights)
    return encoder


def load_backbone_weights(encoder: GridEncoder, path: str) -> None:
    """Load a backbone checkpoint (.pth or .safetensors, data only, never executed) strictly.

    Classifier weights in the file are left out where the encoder has no classifier. Position embeddings (and windows)
    of another image size are interpolated as timm does it.

    Raises:
        CheckpointError: missing or unexpected keys, other shapes, or an unreadable file.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot read backbone weights: {error}", where=path) from error
    if "_conv_stem.weight" in state:
        state = _from_reference_efficientnet(state, timm.create_model(encoder.name))
    fresh = _create(encoder.name, encoder.image_size, keep_classifier=encoder.classes)
    if not encoder.classes:
        wanted = fresh.state_dict()
        classifier = fresh.default_cfg.get("classifier", "classifier")
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        state = {k: v for k, v in state.items() if k in wanted or not k.startswith(names)}
    state = _resized(state, fresh)
    try:
        fresh.load_state_dict(state, strict=True)
    except RuntimeError as error:
        what = str(error).strip().splitlines()[1].strip()[:200]
        raise CheckpointError(f"backbone weights do not fit: {what} ...", where=path) from error
    if encoder.fold_norm:
        fold_batch_norms(fresh)
    _save_all_buffers(fresh)
    encoder.backbone.load_state_dict(fresh.state_dict())


def _resized(state: dict[str, Tensor], fresh: Any) -> dict[str, Tensor]:
    """The weights with what depends on the image size brought to ``fresh``'s; as they are where all shapes fit."""
    wanted = fresh.state_dict()
    convert = getattr(sys.modules[type(fresh).__module__], "checkpoint_filter_fn", None)
    if convert is None or all(k not in wanted or wanted[k].shape == v.shape for k, v in state.items()):
        return state
    try:
        return dict(convert(dict(state), fresh))
    except Exception:  # weights of another backbone; loading them says what does not fit
        return state


def _from_reference_efficientnet(state: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """Rename the keys of the reference PyTorch port of EfficientNet (``_blocks.7._depthwise_conv``) to timm's."""
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(backbone.blocks) for b in range(len(stage))]
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            names = expanded if f"_blocks.{parts[1]}._expand_conv.weight" in state else plain
            new = [places[int(parts[1])], names[parts[2]], *parts[3:]]
        else:
            new = [outside[parts[0]], *parts[1:]]
        renamed[".".join(new)] = value
    return renamed
