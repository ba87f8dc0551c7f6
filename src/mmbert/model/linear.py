"""The linear layer of the network: PyTorch's, with the quicker of its two matrix libraries for inference on a CPU.

In fp32 ``nn.functional.linear`` calls MKL and writes the bias first, which measured 10 to 20 % slower than oneDNN, the
other library in PyTorch (and the one it uses for bf16). `benchmarks/match.py` shows the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""The operator that torch.compile puts in the place of a linear layer; it has no gradient."""


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


def _onednn_fits(values: Tensor, weight: Tensor) -> bool:
    return (
        not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
        and values.device.type == "cpu"
        and values.dtype == weight.dtype == torch.float32
        and values.shape[-1] == weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
    )


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., I] values and [O, I] weight to [..., O], as ``nn.functional.linear``."""
    if ONEDNN is not None and _onednn_fits(values, weight):
        return ONEDNN(values, weight, bias, "none", [], "")
    return nn.functional.linear(values, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in PyTorch)
        """[..., in_features] to [..., out_features]."""
        return linear(input, self.weight, self.bias)
