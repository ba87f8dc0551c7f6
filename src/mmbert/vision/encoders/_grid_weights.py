"""The grid encoder's backbone: made by timm, its norms folded, a checkpoint of it read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmbert.errors import CheckpointError, ConfigError
from mmbert.plugins import nearest

if TYPE_CHECKING:
    from mmbert.vision.encoders.grid import GridEncoder


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


def save_all_buffers(backbone: nn.Module) -> None:
    """Make all buffers part of checkpoints; those that no checkpoint holds come back empty from ``from_pretrained``."""
    for module in backbone.modules():
        module._non_persistent_buffers_set.clear()


def create_backbone(backbone: str, image_size: int, keep_classifier: bool) -> Any:
    if not timm.is_model(backbone):
        close = nearest(backbone, timm.list_models())
        raise ConfigError(f"timm has no model {backbone!r}", hint=f"did you mean {close!r}?" if close else None)
    options: dict[str, Any] = {} if keep_classifier else {"num_classes": 0}
    try:  # ViTs must be told the input size, CNNs do not know the argument
        return timm.create_model(backbone, pretrained=False, img_size=image_size, **options)
    except TypeError:
        return timm.create_model(backbone, pretrained=False, **options)


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
    fresh = create_backbone(encoder.name, encoder.image_size, keep_classifier=encoder.classes)
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
    save_all_buffers(fresh)
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
