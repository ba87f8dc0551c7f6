"""Weights of bottom-up attention in the forms in which they are passed around, under our names.

Three layouts, told apart by their names and shapes:

- *Caffe*: the blobs of the original network (``res4b22_branch2c``, ``bn4b22_branch2c``, ``scale4b22_branch2c``);
- *pixels*: detectron2's names, Caffe's conventions (two objectness channels per anchor, background first);
- *continuous*: detectron2's names and conventions (one channel per anchor, background last).

Every name of a file is used, or named as left out, or an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmbert.errors import CheckpointError
from mmbert.vision.encoders._bottom_up_network import ANCHORS, caffe_anchors, continuous_anchors
from mmbert.vision.encoders._detectors import read_arrays

Convention = Literal["caffe", "detectron2"]
"""How boxes are counted: corners are pixels of the box, or points between pixels."""

_HEADS = {
    "rpn_conv/3x3": "proposals.conv", "rpn_cls_score": "proposals.objectness", "rpn_bbox_pred": "proposals.deltas",
    "cls_score": "predictor.classes", "bbox_pred": "predictor.deltas", "cls_embedding": "predictor.class_embedding",
    "fc_attr": "predictor.attribute_hidden", "attr_score": "predictor.attributes",
}  # fmt: skip
_LINEAR = ("cls_score", "bbox_pred", "cls_embedding", "fc_attr", "attr_score")
"""Layers whose weights are matrices; old versions of Caffe keep them with four axes."""
_DETECTRON2 = {
    "backbone.stem.conv1": "stem",
    "proposal_generator.rpn_head.conv": "proposals.conv",
    "proposal_generator.rpn_head.objectness_logits": "proposals.objectness",
    "proposal_generator.rpn_head.anchor_deltas": "proposals.deltas",
    "proposal_generator.anchor_generator.cell_anchors.0": "proposals.anchors",
    "roi_heads.box_predictor.cls_score": "predictor.classes",
    "roi_heads.box_predictor.bbox_pred": "predictor.deltas",
    "roi_heads.box_predictor.cls_embedding": "predictor.class_embedding",
    "roi_heads.box_predictor.fc_attr": "predictor.attribute_hidden",
    "roi_heads.box_predictor.attr_score": "predictor.attributes",
    "roi_heads.box_predictor.cls_embed": "predictor.class_embedding",
    "roi_heads.box_predictor.attr_linear1": "predictor.attribute_hidden",
    "roi_heads.box_predictor.attr_linear2": "predictor.attributes",
}
_BLOCKS = re.compile(r"(?:backbone|roi_heads)\.(res[2-5]\.\d+\.(?:conv[123]|shortcut))")
_BLOB = re.compile(r"(.+)[./_:](\d|weight|bias)")
_CAFFE_LAYER = re.compile(r"(res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2a|2b|2c)")
_UNUSED = re.compile(r".*num_batches_tracked|pixel_mean|pixel_std|(heatmap_|fc_rel1|fc_subject|fc_object|rel_).*")
"""Counters and constants that inference does not need, and the original's head for relations between objects."""


@dataclass(frozen=True)
class Converted:
    """A network's tensors under our names.

    Attributes:
        convention: how this network counts boxes.
        left_out: names in the file that the network has no use for.
    """

    state: dict[str, Tensor]
    convention: Convention
    left_out: list[str]


def read_weights(path: str) -> Converted:
    """Read a file of any of the layouts.

    Raises:
        CheckpointError: not such a file; a name that belongs to none of the layouts.
    """
    tensors = read_arrays(path)
    left_out = [name for name in tensors if _UNUSED.fullmatch(name)]
    tensors = {name: tensor.float() for name, tensor in tensors.items() if name not in left_out}
    if any(_CAFFE_LAYER.match(name) for name in tensors):
        return Converted(_background_first(_from_caffe(tensors, path), path), "caffe", left_out)
    if any(name.startswith("roi_heads.") for name in tensors):
        state = {_ours(name, path): tensor for name, tensor in tensors.items()}
        convention = _convention(state, path)
        anchors = caffe_anchors() if convention == "caffe" else continuous_anchors()
        state.setdefault("proposals.anchors", anchors)
        return Converted(_background_first(state, path), convention, left_out)
    raise CheckpointError(
        f"no weights of bottom-up attention: {next(iter(tensors))!r} is not one of their names",
        where=path,
        hint="give Caffe's blobs or a conversion for detectron2 (docs/vision-encoders.md)",
    )


def _ours(name: str, path: str) -> str:
    """Our name for one of detectron2's."""
    block = _BLOCKS.match(name)
    if block:
        return block.group(1) + name[block.end() :]
    for theirs, ours in _DETECTRON2.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name[len(theirs) :]
    raise _unknown(name, path)


def _unknown(name: str, path: str) -> CheckpointError:
    return CheckpointError(f"{name!r} is not part of bottom-up attention", where=path, hint="is it another detector?")


def _from_caffe(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Blobs (``layer.0``, ``layer.1`` ...) under our names, BatchNorm and Scale joined."""
    state: dict[str, Tensor] = {"proposals.anchors": caffe_anchors()}
    blobs: dict[tuple[str, int], Tensor] = {}
    for name, tensor in tensors.items():
        found = _BLOB.fullmatch(name)
        if found is None:
            raise _unknown(name, path)
        name_of_layer, which = found.groups()
        blobs[name_of_layer, int({"weight": "0", "bias": "1"}.get(which, which))] = tensor
    for (layer, number), blob in blobs.items():
        if layer in _HEADS and number < 2:
            blob = blob.flatten() if number else blob.flatten(end_dim=-2) if layer in _LINEAR else blob
            state[f"{_HEADS[layer]}.{('weight', 'bias')[number]}"] = blob
            continue
        kind, target = _caffe_layer(layer, path)
        if number >= {"res": 1, "scale": 2, "bn": 3}[kind]:
            raise _unknown(f"{layer}.{number}", path)
        if kind == "res":
            state[f"{target}.weight"] = blob
        elif kind == "scale":
            state[f"{target}.norm.{('weight', 'bias')[number]}"] = blob.flatten()
        elif number < 2:  # sums of means and variances, and by what to divide them
            by = blobs.get((layer, 2))
            if by is None:
                raise CheckpointError(f"{layer} lacks its third blob", where=path)
            factor = float(by.flatten()[0])
            value = blob.flatten() / factor if factor else torch.zeros_like(blob.flatten())
            state[f"{target}.norm.{('running_mean', 'running_var')[number]}"] = value
    return state


def _caffe_layer(layer: str, path: str) -> tuple[str, str]:
    """Kind (res, bn, scale) of a layer of the ResNet and our name of its convolution."""
    stem = {"conv1": "res", "bn_conv1": "bn", "scale_conv1": "scale"}
    if layer in stem:
        return stem[layer], "stem"
    found = _CAFFE_LAYER.fullmatch(layer)
    if found is None:
        raise _unknown(layer, path)
    kind, stage, letter, number, branch = found.groups()
    block = int(number) if number else ord(letter) - ord("a")
    part = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}[branch]
    return kind, f"res{stage}.{block}.{part}"


def _convention(state: Mapping[str, Tensor], path: str) -> Convention:
    weight = state.get("proposals.objectness.weight")
    if weight is None or weight.shape[0] not in (ANCHORS, 2 * ANCHORS):
        raise CheckpointError("no objectness for 12 anchors in it", where=path, hint="is it another detector?")
    return "caffe" if weight.shape[0] == 2 * ANCHORS else "detectron2"


def _background_first(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """One objectness logit per anchor, and background (or "no attribute") before everything else."""
    two = _convention(state, path) == "caffe"
    changed = dict(state)
    for name, tensor in state.items():
        if name.startswith("proposals.objectness.") and two:  # the logit of a softmax over two is their difference
            changed[name] = tensor[ANCHORS:] - tensor[:ANCHORS]
        elif not two:
            changed[name] = _LAST_TO_FIRST.get(name.rpartition(".")[0], _same)(tensor)
    return changed


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _roll(tensor: Tensor) -> Tensor:
    return tensor.roll(1, 0)


def _no_move(tensor: Tensor) -> Tensor:
    """Background has no box deltas there; ours stay where they are."""
    return torch.cat([tensor.new_zeros(4, *tensor.shape[1:]), tensor])


_LAST_TO_FIRST: dict[str, Callable[[Tensor], Tensor]] = {
    "predictor.classes": _roll,
    "predictor.class_embedding": _roll,
    "predictor.attributes": _roll,
    "predictor.deltas": _no_move,
}
