"""Self-attention over packed sequences: each sequence attends within itself, and no position is padding.

On a GPU in half precision PyTorch's variable-length kernel does it in one call. Elsewhere sequences are grouped by
equal length, so that each group is one dense batched product without a mask: on two CPU cores this measured faster
than padding, nested tensors and the fused kernel (`benchmarks/attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from mmbert.model.dropout import dropout
from mmbert.model.linear import Linear

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch before 2.10
    varlen_attn = None  # type: ignore[assignment]


@dataclass
class AttentionPlan:
    """How the sequences of one batch are grouped; made once and used by every layer.

    Attributes:
        groups: (number of sequences, length) of runs of equal length, in stream order.
        order: [P] stream positions sorted so that equal lengths are neighbours; None when they already are.
        inverse: [P] undoes ``order``.
        cu_seqlens: [B + 1] int32 starts (in the sorted stream).
        longest: greatest length.
    """

    groups: list[tuple[int, int]]
    order: Tensor | None
    inverse: Tensor | None
    cu_seqlens: Tensor
    longest: int


def plan_attention(lengths: list[int], cu_seqlens: Tensor) -> AttentionPlan:
    """Group sequences of ``lengths`` (and ``cu_seqlens`` [B + 1], their starts) by equal length."""
    groups = [(len(list(run)), length) for length, run in groupby(lengths)]
    if len(groups) == len(set(lengths)):
        return AttentionPlan(groups, None, None, cu_seqlens, max(lengths))
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    device = cu_seqlens.device
    sorted_lengths = torch.tensor([lengths[i] for i in by_length], device=device)
    starts = cu_seqlens.long()[torch.tensor(by_length, device=device)]
    new_starts = torch.zeros(len(lengths) + 1, dtype=torch.long, device=device)
    torch.cumsum(sorted_lengths, 0, out=new_starts[1:])
    total = sum(lengths)
    shift = torch.repeat_interleave(starts - new_starts[:-1], sorted_lengths, output_size=total)
    order = torch.arange(total, device=device) + shift
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(total, device=device)
    groups = [(len(list(run)), length) for length, run in groupby(lengths[i] for i in by_length)]
    return AttentionPlan(groups, order, inverse, new_starts.int(), max(lengths))


def cut_plan(plan: AttentionPlan, limit: int) -> Iterator[tuple[int, int, AttentionPlan]]:
    """Cut a plan into parts of whole sequences.

    Args:
        plan: of the whole batch.
        limit: positions per part; a longer sequence is a part by itself.

    Yields:
        first position, end and plan of each part, in the order of the sorted stream.
    """
    lengths = [length for count, length in plan.groups for _ in range(count)]
    start = size = first = 0
    for number, length in enumerate([*lengths, 0]):
        if size and (size + length > limit or number == len(lengths)):
            groups = [(len(list(run)), each) for each, run in groupby(lengths[first:number])]
            bounds = plan.cu_seqlens[first : number + 1] - start
            yield start, start + size, AttentionPlan(groups, None, None, bounds, max(lengths[first:number]))
            start, size, first = start + size, 0, number
        size += length


SHORT = 64
"""Up to this length attention on a CPU is done in single precision although the linear layers are in bf16: its products
are small and of ever new sizes, for each of which oneDNN would make a program."""


def better_exact(values: Tensor, longest: int) -> bool:
    """Whether attention over ``longest`` positions is left out of a low-precision pass (see :data:`SHORT`)."""
    return values.device.type == "cpu" and torch.is_autocast_enabled("cpu") and longest <= SHORT


def grouped_attention(
    qkv: Tensor, plan: AttentionPlan, heads: int, dropout_rate: float = 0.0, keep_weights: list[Tensor] | None = None
) -> Tensor:
    """Attention by groups of equal length.

    Args:
        qkv: [P, 3 * H]; rows behind the plan's positions belong to no sequence.
        plan: the groups.
        heads: number of heads.
        dropout_rate: of the weights.
        keep_weights: receives them, see :class:`PackedSelfAttention`.

    Returns:
        [P, H].
    """
    if better_exact(qkv, plan.longest):
        with torch.autocast("cpu", enabled=False):
            return _grouped(qkv.float(), plan, heads, dropout_rate, keep_weights, fused=keep_weights is None)
    return _grouped(qkv, plan, heads, dropout_rate, keep_weights, fused=False)


def _grouped(
    qkv: Tensor, plan: AttentionPlan, heads: int, dropout_rate: float, keep_weights: list[Tensor] | None, *, fused: bool
) -> Tensor:
    head_size = qkv.shape[1] // (3 * heads)
    outputs = []
    sizes = [c * n for c, n in plan.groups]
    extra = len(qkv) - sum(sizes)
    # One split, not a slice per group: the gradient of each slice would be as large as the whole batch.
    *all_rows, rest = qkv.split([*sizes, extra])
    for rows, (count, length) in zip(all_rows, plan.groups, strict=True):
        parts = rows.view(count, length, 3, heads, head_size).permute(2, 0, 3, 1, 4)
        if fused and not dropout_rate:
            mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
            outputs.append(mixed.transpose(1, 2).reshape(count * length, -1))
            continue
        query, key, value = parts.reshape(3, count * heads, length, head_size).unbind(0)
        weights = torch.softmax(torch.bmm(query * head_size**-0.5, key.transpose(1, 2)), dim=-1)
        if keep_weights is not None:
            keep_weights.extend(weights.detach().view(count, heads, length, length))
        mixed = torch.bmm(dropout(weights, dropout_rate).to(value.dtype), value)
        outputs.append(mixed.view(count, heads, length, head_size).transpose(1, 2).reshape(count * length, -1))
    if extra:
        outputs.append(rest[:, : heads * head_size])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class PackedSelfAttention(nn.Module):
    """Multi-head self-attention within each packed sequence, one projection for query, key and value.

    Args:
        hidden_size: H.
        heads: number of heads; H is a multiple of it.
        dropout: of the attention weights.
    """

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = hidden_size // heads
        self.dropout = dropout
        self.qkv = Linear(hidden_size, 3 * hidden_size)

    def forward(
        self,
        hidden: Tensor,
        plan: AttentionPlan,
        keep_weights: list[Tensor] | None = None,
        keep_keys: list[Tensor] | None = None,
    ) -> Tensor:
        """Mix the positions of each sequence.

        Args:
            hidden: [P, H], in the plan's order.
            plan: the batch's groups.
            keep_weights: a list that receives, per sequence in the plan's order, [heads, length, length] weights.
            keep_keys: a list that receives [P, 2 * H] keys and values, in the plan's order.

        Returns:
            [P, H] before the output projection.
        """
        rate = self.dropout if self.training else 0.0
        qkv = self.qkv(hidden)
        if keep_keys is not None:
            keep_keys.append(qkv[:, hidden.shape[1] :])
        if self._varlen_fits(qkv, rate) and keep_weights is None:
            query, key, value = qkv.view(-1, 3, self.heads, self.head_size).unbind(1)
            mixed: Tensor = varlen_attn(  # type: ignore[assignment]
                query.contiguous(), key.contiguous(), value.contiguous(), plan.cu_seqlens, plan.cu_seqlens,
                plan.longest, plan.longest,
            )  # fmt: skip
            return mixed.reshape(-1, self.heads * self.head_size)
        return grouped_attention(qkv, plan, self.heads, rate, keep_weights)

    def _varlen_fits(self, qkv: Tensor, rate: float) -> bool:
        """PyTorch's kernel takes half precision on a GPU and knows no dropout."""
        return (
            varlen_attn is not None
            and qkv.is_cuda
            and not rate
            and qkv.dtype in (torch.float16, torch.bfloat16)
            and self.head_size <= 256
        )
