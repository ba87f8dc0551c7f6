"""Self-attention over packed sequences: each sequence attends within itself, and no position is padding.

On a GPU one kernel does it (:mod:`mmbert.model.fused`), or where none fits, a few padded products. Elsewhere sequences
are grouped by equal length, so that each group is one dense batched product without a mask: on two CPU cores this
measured faster than padding, nested tensors and the fused kernel (`benchmarks/attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmbert.model import fused
from mmbert.model.dropout import DropoutMask, dropout
from mmbert.model.linear import Linear


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
    exact = better_exact(qkv, plan.longest)
    one_kernel = exact and keep_weights is None and not dropout_rate
    if keep_weights is None and not one_kernel and weights_made_again(qkv):
        made: Tensor = _RecomputingAttention.apply(  # type: ignore[no-untyped-call]
            qkv, plan.groups, heads, dropout_rate, torch.float32 if exact else qkv.dtype
        )
        return made
    if exact:
        with torch.autocast("cpu", enabled=False):
            return _grouped(qkv.float(), plan, heads, dropout_rate, keep_weights, one_kernel=one_kernel)
    return _grouped(qkv, plan, heads, dropout_rate, keep_weights, one_kernel=False)


def _grouped(
    qkv: Tensor,
    plan: AttentionPlan,
    heads: int,
    dropout_rate: float,
    keep_weights: list[Tensor] | None,
    *,
    one_kernel: bool,
) -> Tensor:
    head_size = qkv.shape[1] // (3 * heads)
    outputs = []
    sizes = [c * n for c, n in plan.groups]
    extra = len(qkv) - sum(sizes)
    # One split, not a slice per group: the gradient of each slice would be as large as the whole batch.
    *all_rows, rest = qkv.split([*sizes, extra])
    for rows, (count, length) in zip(all_rows, plan.groups, strict=True):
        parts = rows.view(count, length, 3, heads, head_size).permute(2, 0, 3, 1, 4)
        if one_kernel:
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


def weights_made_again(qkv: Tensor) -> bool:
    """Whether a backward pass will want weights, which it then makes again.

    Not a matter of :func:`~mmbert.model.recompute.recomputing`: activation checkpointing runs a layer anew outside of
    it, and must come to the same tensors.
    """
    return torch.is_grad_enabled() and qkv.requires_grad and not torch.compiler.is_compiling()


KEPT = 2
"""Weights of sequences up to so many head sizes long are kept: they are no larger than two thirds of the queries, keys
and values beside them, and making them again would take a hundredth of a step."""


class _RecomputingAttention(torch.autograd.Function):
    """:func:`_grouped`, of which query, key, value and a bit per dropped weight are kept for the backward pass.

    The backward pass computes the weights of longer sequences (:data:`KEPT`) again, and those after dropout of all
    sequences, which costs one small product. All groups are written into one tensor and their gradients into another;
    autograd would make one of each for every operation and join them. The formulas are those of Dao et al. (2022),
    without tiles.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, groups: list[tuple[int, int]], heads: int, rate: float, dtype: torch.dtype
    ) -> Tensor:
        size = qkv.shape[1] // (3 * heads)
        mixed, start = qkv.new_empty(len(qkv), heads * size), 0
        masks, kept_weights = list[DropoutMask](), list[Tensor]()
        with torch.autocast(qkv.device.type, enabled=False):
            for count, length in groups:
                rows = slice(start, start := start + count * length)
                query, key, value = _by_head(qkv[rows], count, heads, size, dtype)
                weights = _weights(query.mul_(size**-0.5), key)
                if short := length <= KEPT * size:
                    kept_weights.append(weights)
                if rate:
                    mask, ones = DropoutMask.draw(weights.shape, rate)
                    masks.append(mask)
                    weights = (weights.mul(ones) if short else weights.mul_(ones)).mul_(mask.scale)
                own = torch.bmm(weights.to(dtype), value).view(count, heads, length, size)
                mixed[rows].view(count, length, heads, size).copy_(own.transpose(1, 2))
        mixed[start:] = qkv[start:, : heads * size]
        ctx.save_for_backward(qkv, *(mask.kept for mask in masks), *kept_weights)
        ctx.rest = groups, heads, dtype, [(mask.shape, mask.scale) for mask in masks]
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mixed: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *kept = ctx.saved_tensors
        groups, heads, dtype, of_masks = ctx.rest
        masks = [DropoutMask(bits, *rest) for bits, rest in zip(kept[: len(of_masks)], of_masks, strict=True)]
        kept_weights = iter(kept[len(of_masks) :])
        size, start = qkv.shape[1] // (3 * heads), 0
        grad_qkv = torch.empty_like(qkv)
        for number, (count, length) in enumerate(groups):
            rows = slice(start, start := start + count * length)
            query, key, value = _by_head(qkv[rows], count, heads, size, dtype)
            (grad_own,) = _by_head(grad_mixed[rows], count, heads, size, dtype)
            query.mul_(size**-0.5)
            weights = next(kept_weights) if length <= KEPT * size else _weights(query, key)
            grad_weights = torch.bmm(grad_own, value.transpose(1, 2)).to(weights.dtype)
            dropped = weights
            if masks:
                factors = masks[number].factors(weights.dtype)
                dropped, grad_weights = weights * factors, grad_weights.mul_(factors)
            grad_value = torch.bmm(dropped.to(dtype).transpose(1, 2), grad_own)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).to(dtype)
            grad_query = torch.bmm(grad_scores, key).mul_(size**-0.5)
            grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
            places = grad_qkv[rows].view(count, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            for place, found in zip(places, (grad_query, grad_key, grad_value), strict=True):
                place.copy_(found.view(place.shape))
        grad_qkv[start:, heads * size :] = 0
        grad_qkv[start:, : heads * size] = grad_mixed[start:]
        return grad_qkv, None, None, None, None


def _by_head(rows: Tensor, count: int, heads: int, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """[c * n, k * H] to k copies [c * heads, n, d]."""
    parts = rows.view(count, -1, rows.shape[1] // (heads * size), heads, size).permute(2, 0, 3, 1, 4)
    copied = torch.empty(parts.shape, dtype=dtype, device=rows.device).copy_(parts)
    return copied.view(len(copied), count * heads, -1, size).unbind(0)


def _weights(scaled: Tensor, key: Tensor) -> Tensor:
    """[c * heads, n, n] attention weights of scaled queries, at least in single precision."""
    scores = torch.bmm(scaled, key.transpose(1, 2))
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


PADDING = 1 / 3
"""Most that :func:`binned_attention` pads a sequence by, as a share of the padded length."""


def binned_attention(qkv: Tensor, plan: AttentionPlan, heads: int, dropout_rate: float = 0.0) -> Tensor:
    """Attention by bins of similar length, padded: on a GPU many small products cost more than some padding.

    Args:
        qkv: [P, 3 * H].
        plan: the groups, shortest first where there are several of a length.
        heads: number of heads.
        dropout_rate: of the weights.

    Returns:
        [P, H].
    """
    head_size = qkv.shape[1] // (3 * heads)
    outputs = []
    for start, lengths in _bins(plan):
        places, inside = _padded_places(start, lengths, qkv.device)
        parts = qkv.index_select(0, places.flatten()).view(*places.shape, 3, heads, head_size)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [c, heads, n, d] each
        scores = (query * head_size**-0.5) @ key.transpose(-1, -2)
        scores = scores.masked_fill(~inside[:, None, None], torch.finfo(scores.dtype).min)
        weights = dropout(torch.softmax(scores, dim=-1), dropout_rate).to(value.dtype)
        mixed = (weights @ value).transpose(1, 2).reshape(places.numel(), -1)
        rows = torch.from_numpy(np.flatnonzero(np.arange(max(lengths)) < np.array(lengths)[:, None]))
        outputs.append(mixed.index_select(0, rows.to(qkv.device)))
    return torch.cat(outputs)


def _bins(plan: AttentionPlan) -> Iterator[tuple[int, list[int]]]:
    """First position and lengths of each run of sequences of which none is much shorter or longer than another."""
    start, lengths = 0, list[int]()
    for count, length in plan.groups:
        if lengths and min(*lengths, length) < (1 - PADDING) * max(*lengths, length):
            yield start, lengths
            start, lengths = start + sum(lengths), []
        lengths += [length] * count
    yield start, lengths


def _padded_places(start: int, lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """[c, longest] positions of sequences that stand one behind the other, and whether each is its sequence's own."""
    sizes = np.array(lengths)[:, None]
    columns = np.arange(sizes.max())[None]
    first = start + np.cumsum([0, *lengths[:-1]])[:, None]
    places = torch.from_numpy(first + np.minimum(columns, sizes - 1))
    return places.to(device), torch.from_numpy(columns < sizes).to(device)


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
        if keep_weights is None and fused.fits(qkv, self.head_size, rate):
            query, key, value = qkv.view(-1, 3, self.heads, self.head_size).unbind(1)
            bounds = fused.Bounds(plan.cu_seqlens, plan.longest)
            mixed = fused.fused_packed_attention(query, key, value, bounds, bounds, rate=rate)
            return mixed.reshape(len(hidden), -1)
        if keep_weights is None and qkv.is_cuda:
            return binned_attention(qkv, plan, self.heads, rate)
        return grouped_attention(qkv, plan, self.heads, rate, keep_weights)
