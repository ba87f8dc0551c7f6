"""Reading a ResNet's own checkpoint: torchvision's, or the ResNet-101 that VL-BERT's authors converted from the
bottom-up detector (Anderson et al., 2018; trained on Visual Genome), which names its tensors alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmbert.errors import CheckpointError

WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.", "image_feature_extractor.backbone.")
"""What may stand before all names."""
LAST_STAGE = "image_feature_extractor.roi_head_feature_extractor."


def load_backbone_weights(encoder: nn.Module, path: str) -> tuple[dict[str, str], list[str]]:
    """Load a checkpoint (data only, never executed); what it holds besides (a classifier, say) is left out.

    Args:
        encoder: the encoder, whose parts are called as torchvision calls a ResNet's.
        path: ``.pth``, ``.model`` or ``.safetensors``.

    Returns:
        our name to the name in the file, for all that was loaded; and the names of what was left.

    Raises:
        CheckpointError: unreadable, of another shape, or something of the encoder is not in it.
    """
    state = _read(path)
    own = encoder.state_dict()
    filled: dict[str, str] = {}
    for key, tensor in state.items():
        name = _our_name(key)
        if name not in own:
            continue
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"backbone weights do not fit: {key} is {list(tensor.shape)} instead of {list(own[name].shape)}",
                where=path,
                hint="model.config.vision.layers says how deep the network is",
            )
        filled[name] = key
    missing = sorted(name for name in set(own) - set(filled) if not name.endswith("num_batches_tracked"))
    if missing:
        raise CheckpointError(
            f"backbone weights do not fit: {len(missing)} missing, the first {missing[0]}",
            where=path,
            hint="model.config.vision.layers says how deep the network is",
        )
    with torch.no_grad():
        for name, key in filled.items():
            own[name].copy_(state[key])
    return filled, sorted(set(state) - set(filled.values()))


def _our_name(key: str) -> str:
    if key.removeprefix("module.").startswith(LAST_STAGE):
        return "layer4." + key.removeprefix("module.").removeprefix(LAST_STAGE)
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _read(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises a dozen kinds
        message = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot read backbone weights: {message[0] if message else type(error).__name__}", where=path
        ) from error
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise CheckpointError("no state dict in it", where=path)
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
