"""What all detectors share: options, the order of work in ``extract``, and reading weights without running code.

In: images of any size. Out: :class:`Regions`, the whole image first. Images are only batched with images of their own
size, never padded: padding would change what a convolution sees at the border, and with it the regions.
"""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mmbert.errors import CheckpointError, ConfigError, DataError
from mmbert.vision.encoders.base import RegionExtractor
from mmbert.vision.regions import Regions

NESTS = ("state_dict", "model")
"""Where a state dict may stand in a file."""


class DetectorOptions(BaseModel):
    """Options of every detector.

    Attributes:
        weights: file with the detector's weights; not part of what the encoder is (its numbers are).
        score_threshold: boxes whose best class scores at least this are kept ...
        min_boxes, max_boxes: ... but never fewer nor more than these, as far as the detector proposes any.
        nms_threshold: of boxes of a class that overlap more than this (IoU), the best stays.
    """

    model_config = ConfigDict(extra="forbid")

    weights: str | None = None
    score_threshold: float = Field(0.2, ge=0, le=1)
    nms_threshold: float = Field(0.5, gt=0, le=1)
    min_boxes: int = Field(10, ge=1)
    max_boxes: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> DetectorOptions:
        if self.min_boxes > self.max_boxes:
            raise ValueError(f"min_boxes {self.min_boxes} is more than max_boxes {self.max_boxes}")
        return self


class Found(NamedTuple):
    """What a detector found in one image.

    Attributes:
        boxes: [n, 4] x1, y1, x2, y2 in pixels of the image, best first.
        features: [n, F].
        classes: [n, C] distributions, or None.
    """

    boxes: Tensor
    features: Tensor
    classes: Tensor | None


class Detector(RegionExtractor):
    """A frozen detector; always in eval mode.

    Attributes:
        ready: whether it has weights; without them ``extract`` refuses, for its regions would mean nothing.
        left_out: names in the weights file that the detector has no use for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ready = False
        self.left_out: list[str] = []
        self._known_identity: str | None = None
        self.register_load_state_dict_post_hook(_now_ready)

    def train(self, mode: bool = True) -> Detector:
        return super().train(False)

    def loaded(self) -> None:
        """Note that there are weights, and that they are new."""
        self.ready, self._known_identity = True, None

    def _apply(self, *arguments: Any, **named: Any) -> Any:
        self._known_identity = None  # another precision gives other numbers
        return super()._apply(*arguments, **named)

    @property
    def identity(self) -> str:
        """See :class:`RegionExtractor`; worked out once, for a detector's weights are a quarter of a gigabyte."""
        if self._known_identity is None:
            self._known_identity = super().identity
        return self._known_identity

    @torch.inference_mode()
    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        return self._extract(images, None)

    @torch.inference_mode()
    def describe(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[Regions]:
        """Regions of given boxes ([n, 4] x1, y1, x2, y2 in pixels of each image, n > 0) instead of detected ones.

        Raises:
            DataError: boxes of another shape, or none for an image.
        """
        for number, found in enumerate(boxes):
            if found.ndim != 2 or found.shape[1] != 4 or len(found) == 0:
                raise DataError(f"boxes of image {number} must be [n, 4] with n > 0, not {list(found.shape)}")
        if len(boxes) != len(images):
            raise DataError(f"{len(images)} images but boxes for {len(boxes)}")
        return self._extract(images, boxes)

    def _extract(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray] | None) -> list[Regions]:
        if not self.ready:
            raise ConfigError(
                f"vision encoder {self.kind!r} has no weights; its regions would mean nothing",
                hint="give weights=FILE (docs/vision-encoders.md says where to get one)",
            )
        device = next(self.parameters()).device
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.size, []).append(index)
        regions: list[Regions | None] = [None] * len(images)
        identity = self.identity
        for size, indices in groups.items():
            given = None if boxes is None else [torch.as_tensor(boxes[i], dtype=torch.float32) for i in indices]
            found = self.find([images[i] for i in indices], None if given is None else [g.to(device) for g in given])
            for index, one in zip(indices, found, strict=True):
                classes = None if one.classes is None else one.classes.float().cpu().numpy()
                regions[index] = Regions.with_whole_image(
                    one.boxes.float().cpu().numpy(), one.features.float().cpu().numpy(), size, classes, identity
                )
        return [r for r in regions if r is not None]

    @abstractmethod
    def find(self, images: Sequence[Image.Image], boxes: Sequence[Tensor] | None) -> list[Found]:
        """Detect in images of one size, or describe the given boxes."""


def _now_ready(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Detector)
    module.loaded()


def best_boxes(kept: Tensor, scores: Tensor, options: DetectorOptions) -> Tensor:
    """Which boxes to give, best first.

    Args:
        kept: [k] indices of boxes that non-maximum suppression left, best first.
        scores: [n] score of every box.

    Returns:
        indices of those at or above the threshold, filled up to ``min_boxes`` with the next best, first with those
        that were left, then with those that were suppressed; ``max_boxes`` at most.
    """
    enough = int((scores[kept] >= options.score_threshold).sum())
    count = min(max(enough, options.min_boxes), options.max_boxes)
    suppressed = torch.ones_like(scores, dtype=torch.bool)
    suppressed[kept] = False
    order = scores.argsort(descending=True, stable=True)
    return torch.cat([kept, order[suppressed[order]]])[:count]


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load strictly.

    Raises:
        CheckpointError: names that are missing, left over or of another shape; the first few are listed.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in wanted]
    wrong = [
        f"{k} {list(state[k].shape)} instead of {list(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    for what, names in (("are missing", missing), ("do not belong there", extra), ("have other shapes", wrong)):
        if names:
            shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise CheckpointError(
                f"weights do not fit: {len(names)} tensors {what}: {shown}",
                where=path,
                hint="is it the file of this kind of detector, and of this number of classes?",
            )
    module.load_state_dict({**{k: v for k, v in wanted.items() if k not in state}, **state})


class _NumbersOnly(pickle.Unpickler):
    """Reads pickles of arrays and plain containers; a name of anything else is an error before anything runs."""

    _ARRAY = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    _SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # as it was called before numpy 2
        allowed: dict[str, Any] = {
            "numpy._core.multiarray": {"_reconstruct": self._ARRAY, "scalar": self._SCALAR},
            "numpy": {"ndarray": np.ndarray, "dtype": np.dtype},
            "collections": {"OrderedDict": OrderedDict},
            "_codecs": {"encode": _latin1},
        }.get(module, {})
        if name not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither number nor container")
        return allowed[name]


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How pickles written by Python 2 hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


def read_arrays(path: str) -> dict[str, Tensor]:
    """Tensors by name from ``.pth``, ``.safetensors``, ``.npz`` or a pickle of arrays (``.pkl``); no code is run.

    A list of arrays under a name ``layer`` (how Caffe keeps a layer's blobs) becomes ``layer.0``, ``layer.1`` ...

    Raises:
        CheckpointError: no such file, one of another kind, damaged, or one that holds more than numbers.
    """
    if not Path(path).is_file():
        raise CheckpointError("no such file", where=path, hint="weights are a local file; nothing is downloaded")
    try:
        content = _read(Path(path))
    except Exception as error:  # readers raise almost anything on damaged input
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"cannot read weights: {first}", where=path) from error
    while True:
        inner = next((content[n] for n in NESTS if isinstance(content, Mapping) and n in content), None)
        if not isinstance(inner, Mapping):
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError("cannot read weights: no names in it", where=path)
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if str(name) == "__author__" or str(name) == "matching_heuristics":  # what detectron2 writes beside
            continue
        parts = {f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, (list, tuple)) else {name: value}
        for key, part in parts.items():
            array = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) and _plain(part) else part
            if not isinstance(array, Tensor):
                raise CheckpointError(f"cannot read weights: {str(key)[:80]!r} is not an array", where=path)
            tensors[str(key)] = array.detach()
    if not tensors:
        raise CheckpointError("cannot read weights: it is empty", where=path)
    return tensors


def _plain(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "fiub"


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix in (".pkl", ".pickle"):
        with path.open("rb") as file:
            return _NumbersOnly(file, encoding="latin1").load()
    if start[:1] not in (b"P", b"\x80"):
        raise ValueError("neither a PyTorch file nor .safetensors, .npz or .pkl")
    return torch.load(path, map_location="cpu", weights_only=True)
