"""The linear layer of the network: PyTorch's, with the quicker of its two matrix libraries for inference on a CPU.

In fp32 ``nn.functional.linear`` calls MKL and writes the bias first, which measured 5 to 50 % slower for some hundred
rows than oneDNN, the other library in PyTorch (and the one it uses for bf16). For a thousand and more it is the other
way round: oneDNN falls to 75 % of MKL at some numbers of rows (:data:`MANY`; `benchmarks/match.py`).

A product of few rows takes as long as the weight takes to be read, and the order that it is kept in is a poor one for
that: :class:`PackedWeights` hold it in oneDNN's own, for whoever writes text (`benchmarks/decode.py`). In 8 bits
(:mod:`mmbert.model.int8`, for models that are told so) products of few and of many rows are faster still, not exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from mmbert.model.int8 import Copy
from mmbert.model.kept import Kept

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""The operator that torch.compile puts in the place of a linear layer; it has no gradient."""

_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if ONEDNN is not None else None
"""The operator that torch.compile prepares a weight with that stays the same."""

FEW = 64
"""Rows up to which a packed weight is quicker; for this many it is packed (it serves fewer as well)."""

MANY = 600
"""Rows from which MKL multiplies with a weight in its plain order."""


class PackedWeights:
    """Weights that few rows are multiplied with, held a second time in the order that makes it quick.

    They are packed when they are first asked for, which takes about the time of ten such products, and anew when they
    have changed; so this is for whoever uses the same weights over and over, on a CPU, in fp32, without gradients.
    """

    def __init__(self) -> None:
        self._known: dict[int, Kept[Tensor]] = defaultdict(lambda: Kept(_pack))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, :func:`linear` multiplies with these."""
        before = _packed.set(self)
        try:
            yield
        finally:
            _packed.reset(before)

    def of(self, weight: Tensor) -> Tensor:
        """Of an [O, I] weight; itself where it cannot be packed."""
        if _PACK is None or weight.is_inference():  # which do not say that they have changed
            return weight
        return self._known[id(weight)].of(weight)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = _PACK(weight, FEW)  # type: ignore[misc]
    return packed


_packed: ContextVar[PackedWeights | None] = ContextVar("packed", default=None)


ROWS = 64
"""oneDNN makes a program for each size of matrix that it meets in bf16, which takes as long as the product itself.
Packed batches have another number of rows each, so rows are added up to a multiple of this."""


def missing_rows(values: Tensor) -> int:
    """Rows to add to [P, H] before low-precision products on a CPU, so that their sizes come again."""
    if values.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return 0
    return -len(values) % ROWS


def with_rows(values: Tensor, count: int) -> Tensor:
    """[P, ...] and ``count`` copies of the first row."""
    return torch.cat([values, values[:1].expand(count, *values.shape[1:])]) if count and len(values) else values


def _only_computed(values: Tensor, weight: Tensor) -> bool:
    """Whether plain fp32 inference on a CPU: no gradient, no autocast, and not while a graph is traced or compiled."""
    return (
        not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
        and values.device.type == "cpu"
        and values.dtype == weight.dtype == torch.float32
        and values.shape[-1] == weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
    )


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None, int8: Copy | None = None) -> Tensor:
    """[..., I] values and [O, I] weight to [..., O], as ``nn.functional.linear``; where the weight's copy in 8 bits is
    given and fits, with that."""
    if not _only_computed(values, weight):
        return nn.functional.linear(values, weight, bias)
    if int8 is not None and (in_8_bits := int8.of(weight)) is not None:
        return in_8_bits.product(values, bias)
    if ONEDNN is not None and values.numel() < MANY * values.shape[-1]:
        packed = _packed.get()
        if packed is not None and 0 < values.numel() <= FEW * values.shape[-1]:
            weight = packed.of(weight)
        return ONEDNN(values, weight, bias, "none", [], "")
    return nn.functional.linear(values, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    int8: Copy | None = None
    """Set: without gradients it multiplies in 8 bits."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in PyTorch)
        """[..., in_features] to [..., out_features]."""
        return linear(input, self.weight, self.bias, self.int8)
