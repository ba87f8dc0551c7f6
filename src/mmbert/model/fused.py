"""Attention on a GPU in one kernel, over all packed sequences at once, whatever their lengths.

PyTorch has two kernels that take where each sequence starts, and text that sees only what is before it: the
memory-efficient one (Rabe and Staats, 2021; CUTLASS), for single and half precision, and FlashAttention-2 (Dao, 2023),
for half precision only. At these lengths the first is the quicker one, but with dropout its gradient was found to be
wrong in PyTorch 2.11, so dropout takes the second (`tests/model/test_fused.py` looks at what was dropped).
`nn.functional` reaches them with such starts through nested tensors only, which measured 30 times slower at these
lengths, most of it Python (`benchmarks/attention.py --device cuda`); the function for sequences of different lengths
that PyTorch has knows neither dropout nor fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

EXACT = getattr(torch.ops.aten, "_efficient_attention_forward", None)
DROPPING = getattr(torch.ops.aten, "_flash_attention_forward", None)
UP_TO_LAST = 2
"""The first kernel's number for the mask in which the last query sees the last key, the one before it one key less.
(The second knows no other.)"""


@dataclass(frozen=True)
class Bounds:
    """Where sequences stand in a flat row.

    Attributes:
        starts: [B + 1] int32, first position of each and the end.
        longest: greatest length.
    """

    starts: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Bounds:
        """Of sequences one behind the other."""
        starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(lengths, dtype=torch.int32), 0, out=starts[1:])
        return cls(starts.to(device, non_blocking=True), max(lengths, default=0))


@cache
def _of_this_decade(device: torch.device) -> bool:
    """Ampere or later: has bf16, and FlashAttention-2."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fits(values: Tensor, head_size: int, rate: float = 0.0) -> bool:
    """Whether a kernel supports the device and type of ``values``, this head size and this dropout rate.

    They want rows of 16 bytes. (AMD's versions take no starts.)
    """
    if not values.is_cuda or torch.version.hip is not None or head_size * values.element_size() % 16:
        return False
    half = values.dtype in (torch.float16, torch.bfloat16)
    if rate:
        return DROPPING is not None and half and head_size <= 256 and _of_this_decade(values.device)
    alike = values.dtype in (torch.float16, torch.float32) or (half and _of_this_decade(values.device))
    return EXACT is not None and alike


def fused_packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Bounds,
    keys: Bounds,
    *,
    causal: bool = False,
    rate: float = 0.0,
) -> Tensor:
    """Softmax attention of each sequence's queries to the same sequence's keys.

    Args:
        query: [Q, heads, d].
        key, value: [K, heads, d].
        queries, keys: which sequence has which.
        causal: query i of n sees the first k - n + i + 1 of k keys only.
        rate: dropout of the weights.

    Returns:
        [Q, heads, d].
    """
    bounds = (queries.starts, keys.starts, queries.longest, keys.longest)
    mixed: Tensor
    if rate:
        assert DROPPING is not None
        mixed = DROPPING(query, key, value, *bounds, rate, causal, False)[0]
        return mixed
    assert EXACT is not None
    mixed = EXACT(
        query[None], key[None], value[None], None, *bounds, 0.0, UP_TO_LAST if causal else 0,
        compute_log_sumexp=torch.is_grad_enabled(),
    )[0]  # fmt: skip
    return mixed[0]
