"""Detectors of torchvision: Faster and Mask R-CNN, RetinaNet, FCOS, SSD. Boxes after suppression, pooled features.

Two steps: boxes are *detected*, then *described* by what is pooled inside them. Two-stage detectors describe a box by
their box head's representation and its classification; one-stage ones by the mean of the pyramid level that fits the
box's size (Lin et al. 2017, "Feature Pyramid Networks", equation 1), and keep the class scores of the detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align
from torchvision.transforms.functional import pil_to_tensor

from mmbert.errors import ConfigError
from mmbert.plugins import nearest, read_options
from mmbert.vision.encoders._detectors import (
    Detector,
    DetectorOptions,
    Found,
    best_boxes,
    load_state,
    read_arrays,
)

CANDIDATES = 1000
"""Boxes with the best scores that suppression looks at in a one-stage detector."""
POOLED = 7
TRAINED_EXACT = (
    "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn",
)  # fmt: skip
"""Detectors whose first weights (COCO_V1) torchvision trained with norms without epsilon."""
SMALLEST_SIDE = 32
"""Pixels of the network's input; images so narrow that they would be less are stretched."""


class Options(DetectorOptions):
    """Options of :func:`build`.

    Attributes:
        model: name of a torchvision detector.
        weights: file with a state dict, or the name of torchvision's own weights (``DEFAULT``, ``COCO_V1``), which
            torchvision downloads unless it has them.
        num_classes: classes of the weights, background included where the detector has one.
        min_size, max_size: shorter and longer side that images are scaled to; None: the detector's own.
        exact_norms: norms add nothing to the variance, as torchvision's first COCO weights need it; None: where the
            weights are those (told by their name).
    """

    model: str = "fasterrcnn_resnet50_fpn_v2"
    num_classes: int = 91
    min_size: int | None = None
    max_size: int | None = None
    exact_norms: bool | None = None


class Candidates(NamedTuple):
    """Boxes that a detector considers in one image: [n, 4] in its input's pixels, [n] scores and labels, and the
    class distribution [n, C] where describing the box will not give one."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: Tensor | None


class TorchvisionDetector(Detector):
    """Regions of a torchvision detector; see :class:`Options`."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.settings = options
        self.model: Any = _create(options)
        self.requires_grad_(False)
        self.eval()
        self.two_stage = hasattr(self.model, "roi_heads")
        self.background_first = self.two_stage or isinstance(self.model, detection.ssd.SSD)
        self.feature_size = self._feature_size()

    def _feature_size(self) -> int:
        if self.two_stage:
            return int(self.model.roi_heads.box_predictor.cls_score.in_features)
        if isinstance(self.model, detection.ssd.SSD):
            side = self.model.transform.fixed_size[0]
            with torch.no_grad():
                return int(next(iter(self.model.backbone(torch.zeros(1, 3, side, side)).values())).shape[1])
        return int(self.model.backbone.out_channels)

    def find(self, images: Sequence[Image.Image], boxes: Sequence[Tensor] | None) -> list[Found]:
        device = next(self.parameters()).device
        width, height = images[0].size
        pixels = [pil_to_tensor(self._stretched(image)).to(device).float() / 255 for image in images]
        batch, _ = self.model.transform(pixels)
        rows, columns = batch.image_sizes[0]
        scale = torch.tensor([columns / width, rows / height] * 2, device=device)
        maps = self.model.backbone(batch.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else dict(maps)
        classes: list[Tensor | None] = [None] * len(images)
        if boxes is None:
            chosen = [self._choose(c, (rows, columns)) for c in self._candidates(batch, maps)]
            inside, classes = [box for box, _ in chosen], [distribution for _, distribution in chosen]
        else:
            inside = [box * scale for box in boxes]
        features, described = self._describe(maps, inside, batch)
        counts = [len(box) for box in inside]
        if described is not None:
            classes = list(described.split(counts))
        limit = torch.tensor([width, height] * 2, device=device, dtype=scale.dtype)
        outside = [(box / scale).clamp(min=torch.zeros(4, device=device), max=limit) for box in inside]
        outside = outside if boxes is None else list(boxes)
        return [Found(*one) for one in zip(outside, features.split(counts), classes, strict=True)]

    def _stretched(self, image: Image.Image) -> Image.Image:
        """The image in RGB; one so narrow that scaling would leave nothing of its shorter side is made wider."""
        rgb = image.convert("RGB")
        transform = self.model.transform
        if transform.fixed_size is not None:
            return rgb
        factor = min(transform.min_size[-1] / min(rgb.size), transform.max_size / max(rgb.size))
        least = -int(-SMALLEST_SIDE // factor)
        if min(rgb.size) >= least:
            return rgb
        return rgb.resize((max(rgb.width, least), max(rgb.height, least)), Image.Resampling.BILINEAR)

    def _candidates(self, batch: Any, maps: dict[str, Tensor]) -> list[Candidates]:
        return self._from_proposals(batch, maps) if self.two_stage else self._from_anchors(batch, maps)

    def _from_proposals(self, batch: Any, maps: dict[str, Tensor]) -> list[Candidates]:
        """Each proposal, moved as its best class says."""
        proposals, _ = self.model.rpn(batch, maps)
        logits, deltas = self._heads(maps, proposals, batch)[1:]
        counts = [len(p) for p in proposals]
        found = []
        for boxes, score, delta in zip(proposals, logits.softmax(-1).split(counts), deltas.split(counts), strict=True):
            best, label = score[:, 1:].max(1) if len(boxes) else (score.new_zeros(0), score.new_zeros(0).long())
            moved = self.model.roi_heads.box_coder.decode(delta, [boxes]).reshape(len(boxes), score.shape[1], 4)
            moved = moved[torch.arange(len(boxes), device=boxes.device), label + 1]
            found.append(Candidates(moved, best, label, None))
        return found

    def _from_anchors(self, batch: Any, maps: dict[str, Tensor]) -> list[Candidates]:
        """Each anchor, moved, with its best class; the best ``CANDIDATES`` of them."""
        levels = list(maps.values())
        out = self.model.head(levels)
        anchors = self.model.anchor_generator(batch, levels)
        found = []
        for index, anchor in enumerate(anchors):
            logits, deltas = out["cls_logits"][index], out["bbox_regression"][index]
            if self.background_first:
                distribution = logits.softmax(-1)
                best, label = distribution[:, 1:].max(1)
            else:  # independent scores: their shares serve as a distribution
                scores = logits.sigmoid()
                distribution = scores / scores.sum(1, keepdim=True).clamp(min=1e-12)
                best, label = scores.max(1)
            if "bbox_ctrness" in out:  # FCOS (Tian et al. 2019): geometric mean with how central the anchor is
                best = (best * out["bbox_ctrness"][index].sigmoid().squeeze(-1)).sqrt()
            top = best.argsort(descending=True, stable=True)[:CANDIDATES]
            coder = self.model.box_coder
            decode = coder.decode if isinstance(self.model, detection.fcos.FCOS) else coder.decode_single
            found.append(Candidates(decode(deltas[top], anchor[top]), best[top], label[top], distribution[top]))
        return found

    def _choose(self, found: Candidates, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """[n, 4] boxes after suppression, and their distributions; the whole input where there is none."""
        boxes = clip_boxes_to_image(found.boxes, size)
        real = torch.isfinite(boxes).all(1) & (boxes[:, 2] - boxes[:, 0] >= 1e-2) & (boxes[:, 3] - boxes[:, 1] >= 1e-2)
        boxes, scores, labels = boxes[real], found.scores[real], found.labels[real]
        if len(boxes) == 0:
            whole = found.boxes.new_tensor([[0, 0, size[1], size[0]]])
            return whole, None if found.classes is None else found.classes.new_zeros(1, found.classes.shape[1])
        kept = batched_nms(boxes, scores, labels, self.settings.nms_threshold)
        chosen = best_boxes(kept, scores, self.settings)
        return boxes[chosen], None if found.classes is None else found.classes[real][chosen]

    def _describe(self, maps: dict[str, Tensor], boxes: list[Tensor], batch: Any) -> tuple[Tensor, Tensor | None]:
        """[R, F] features of all boxes, and [R, C] distributions where the detector classifies what is pooled."""
        if self.two_stage:
            features, logits, _ = self._heads(maps, boxes, batch)
            return features, logits.softmax(-1)
        levels = list(maps.values())
        if isinstance(self.model, detection.ssd.SSD):  # its levels differ in width: the finest has them all
            scale = levels[0].shape[-1] / batch.tensors.shape[-1]
            return roi_align(levels[0], boxes, POOLED, scale, 2, aligned=True).mean((2, 3)), None
        return pool_by_level(levels, boxes, batch.tensors.shape[-1]), None

    def _heads(self, maps: dict[str, Tensor], boxes: list[Tensor], batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """[R, F] representations, [R, C] logits and [R, 4 C] box deltas."""
        heads = self.model.roi_heads
        # The pooler remembers the scales that it sees first. Padded sizes give exact ones, whatever the image.
        padded = [tuple(batch.tensors.shape[-2:])] * len(boxes)
        features = heads.box_head(heads.box_roi_pool(maps, boxes, padded))
        logits, deltas = heads.box_predictor(features)
        return features, logits, deltas


def pool_by_level(levels: Sequence[Tensor], boxes: Sequence[Tensor], width: int) -> Tensor:
    """Mean inside each box of the pyramid level that fits its size.

    A box of side s (square root of its area) belongs to stride 2**k, k = floor(4 + log2(s / 224)).

    Args:
        levels: [I, C, rows, columns] each, finest first, each half as fine as the one before.
        boxes: [n, 4] for each image, in pixels of the input.
        width: columns of the input.

    Returns:
        [all boxes, C].
    """
    first = round(torch.log2(torch.tensor(width / levels[0].shape[-1])).item())
    rows = torch.cat([torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)])
    sides = ((rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])).clamp(min=1e-6).sqrt()
    wanted = torch.floor(4 + torch.log2(sides / 224) + 1e-6).clamp(first, first + len(levels) - 1).long() - first
    found = rows.new_zeros(len(rows), levels[0].shape[1])
    for number, level in enumerate(levels):
        here = wanted == number
        if here.any():
            pooled = roi_align(level, rows[here], POOLED, 2.0 ** -(first + number), 2, aligned=True)
            found[here] = pooled.mean((2, 3)).to(found.dtype)
    return found


def _create(options: Options) -> Any:
    known = torchvision.models.list_models(module=detection)
    if options.model not in known:
        close = nearest(options.model, known)
        raise ConfigError(
            f"torchvision has no detector {options.model!r}",
            hint=f"did you mean {close!r}?" if close else f"known: {', '.join(known)}",
        )
    sizes = {k: v for k, v in (("min_size", options.min_size), ("max_size", options.max_size)) if v is not None}
    if sizes and "ssd" in options.model:
        raise ConfigError(f"{options.model} has one input size", hint="leave min_size and max_size out")
    build_model = torchvision.models.get_model_builder(options.model)
    return build_model(weights=None, weights_backbone=None, num_classes=options.num_classes, **sizes)


def _set_norms(encoder: TorchvisionDetector, exact: bool) -> None:
    """Leave epsilon out of the norms, or leave the norms alone; the encoder's options say which."""
    encoder.options = {**encoder.options, "exact_norms": exact}
    for module in encoder.modules() if exact else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0


def load_weights(encoder: TorchvisionDetector, description: str) -> None:
    """Load all of the detector's weights from a file, or torchvision's own by name.

    Raises:
        CheckpointError: the file cannot be read or does not fit; nothing in it is ever run.
    """
    name = encoder.settings.model
    own = {w.name: w for w in torchvision.models.get_model_weights(name)}
    own["DEFAULT"] = torchvision.models.get_model_weights(name).DEFAULT
    if description in own:
        state, official = own[description].get_state_dict(progress=True), own[description]
    else:
        state = read_arrays(description)
        official = next((w for w in own.values() if Path(w.url).name == Path(description).name), None)
    load_state(encoder.model, state, description)
    if encoder.settings.exact_norms is None:
        _set_norms(encoder, exact=official is not None and official.name == "COCO_V1" and name in TRAINED_EXACT)
    encoder.loaded()


def build(**options: Any) -> TorchvisionDetector:
    """Make the encoder; see :class:`Options`.

    Raises:
        ConfigError: an option or detector that does not exist. CheckpointError: weights that do not fit.
    """
    checked = read_options(Options, options, "vision encoder 'torchvision_detector'")
    encoder = TorchvisionDetector(checked)
    encoder.options = checked.model_dump(exclude={"weights"})
    _set_norms(encoder, bool(checked.exact_norms))
    if checked.weights is not None:
        load_weights(encoder, checked.weights)
    return encoder
