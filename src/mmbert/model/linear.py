"""The linear layer of the network: PyTorch's, with the quicker of its two matrix libraries for inference on a CPU.

In fp32 ``nn.functional.linear`` calls MKL and writes the bias first, which measured 10 to 20 % slower than oneDNN, the
other library in PyTorch (and the one it uses for bf16). `benchmarks/match.py` shows the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""The operator that torch.compile puts in the place of a linear layer; it has no gradient."""


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
