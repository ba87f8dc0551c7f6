"""Reading the originals' ``.model`` files: tensors by their original names, and nothing else is ever unpickled.

In: a file that some PyTorch wrote (zip, or the older pickle stream), with the state dict at top level or nested.
Out: a :class:`Checkpoint` whose tensors have canonical names: no ``module.``, no ``_module``, ``weight`` and ``bias``
instead of ``gamma`` and ``beta``, every tensor once.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbert.errors import CheckpointError

NESTS = ("state_dict", "model", "module", "network", "net")
"""Where a state dict may stand in a checkpoint."""
ALIASES = (
    (re.compile(r"(.*\.)?mlm_head\.predictions\.decoder\.weight"), r"\1word_embeddings.weight"),
    (re.compile(r"(image_feature_extractor\.)head\.0\.(.+)"), r"\1roi_head_feature_extractor.\2"),
)
"""One tensor, two names: what the second name of a tensor looks like, and its first."""
_STARTS = (b"\x80", b"PK")
"""First bytes of what PyTorch writes: a pickle (from its second protocol on), or a zip archive (also a damaged one)."""
GIVE_ONE = "give the .model file of VL-BERT or MM-BERT"
_NUMPY_SCALARS: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]
"""Numbers that the originals' validation monitor leaves beside the weights: data, not code."""


@dataclass
class Checkpoint:
    """A checkpoint's tensors.

    Attributes:
        tensors: canonical name to tensor; on the CPU, mapped from the file where its format allows.
        original_keys: every key of the file's state dict, in its order.
        beside: what else the file holds, by name (optimiser state and the like): not read.
        path: where it came from.
    """

    tensors: dict[str, Tensor]
    original_keys: list[str]
    beside: list[str] = field(default_factory=list)
    path: Path | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name to shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def canonical_name(key: str) -> str:
    """A key of the originals without wrappers and with today's names of a LayerNorm's parts."""
    while key.startswith("module."):
        key = key.removeprefix("module.")
    key = key.replace("._module.", ".")
    if key.endswith(".gamma"):
        return key.removesuffix("gamma") + "weight"
    if key.endswith(".beta"):
        return key.removesuffix("beta") + "bias"
    return key


def first_name(name: str) -> str:
    """The name under which a tensor with two names is kept."""
    for pattern, first in ALIASES:
        if pattern.fullmatch(name):
            return pattern.sub(first, name)
    return name


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the tensors of a ``.model`` file.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, one that would have to run code, or one in which two
            names of one tensor hold different numbers.
    """
    path = Path(path)
    content = _load(path)
    state, beside = _state_dict(content, path)
    tensors: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    for key, value in state.items():
        name = first_name(canonical_name(key))
        if name in tensors:
            if not _same(tensors[name], value):
                raise CheckpointError(
                    f"{owner[name]} and {key} are two names of one tensor but hold different numbers",
                    where=str(path),
                    hint="the file was put together from different models",
                )
            continue
        tensors[name], owner[name] = value, key
    return Checkpoint(tensors, list(state), beside, path)


def _load(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "no such checkpoint"
        raise CheckpointError(what, where=str(path), hint=GIVE_ONE)
    try:
        with path.open("rb") as file:
            if not file.read(2).startswith(_STARTS):  # whose bytes PyTorch would take for wishes of a pickle
                raise CheckpointError("not a checkpoint: PyTorch did not write this", where=str(path), hint=GIVE_ONE)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's remarks on how the file was pickled help nobody here
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError("damaged: it asks for more memory than there is", where=str(path)) from error
    except Exception as error:  # PyTorch raises a dozen kinds, among them bare RuntimeError and KeyError
        message = str(error).strip().splitlines()
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise CheckpointError(
                "it holds objects other than tensors and numbers, which could run code when read",
                where=str(path),
                hint="nothing of it was run; save its state_dict alone with the program that wrote it",
            ) from error
        raise CheckpointError(
            f"not a checkpoint, or damaged: {message[0].split('. ')[0][:200] if message else type(error).__name__}",
            where=str(path),
            hint="copy or download it again",
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse archives that PyTorch did not write, or of which a byte has changed (PyTorch itself would not notice)."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
            if ".." in parts or entry.filename.startswith(("/", "\\")) or ":" in entry.filename:
                message = f"the archive has an entry {entry.filename!r} that leads out of it"
                raise CheckpointError(message, where=str(path))
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError("a compressed archive, not a checkpoint that PyTorch wrote", where=str(path))
        broken = archive.testzip()
    if broken is not None:
        raise CheckpointError(
            f"damaged: the checksum of {broken!r} is wrong", where=str(path), hint="copy or download it again"
        )


def _state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict, wherever it is nested, and the names of what stands beside it."""
    beside: list[str] = []
    while isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        inner = next((name for name in NESTS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        beside += [str(name) for name in content if name != inner]
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            "no state dict in it", where=str(path), hint=f"looked at top level and under: {', '.join(NESTS)}"
        )
    state = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{str(key)[:80]!r} in the state dict is not a tensor", where=str(path))
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{key} is not a plain tensor", where=str(path))
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{key} claims more numbers than the file holds", where=str(path))
        state[key] = value.detach()
    return state, beside


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)
