"""Cross entropy over a large vocabulary in chunks of rows, so that the logits of all rows never exist at once.

For M labelled rows and K words the logits, their softmax and its gradient would be 3 x M x K numbers. Here each chunk's
gradients are computed right after its loss and only they are kept (as Wijmans et al., 2024, "Cut your losses", and
Hsu et al., 2024, "Liger kernel", do on GPUs): [M, H] and [K, H], which the backward pass needs anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_NUMBERS = 20_000_000
"""Logits per chunk, at most: 80 MB in fp32."""


def vocabulary_loss(
    states: Tensor, table: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the cross entropies of ``states @ table.T + bias``, and how many rows are right.

    Args:
        states: [M, H].
        table, bias: [K, H] and [K].
        labels: [M].
        weights: [M] of each row in the sum.
        rows: per chunk; None: as many as :data:`CHUNK_NUMBERS` allows.

    Returns:
        two scalars; only the first has a gradient.
    """
    if rows is None:
        chunks = max(1, -(-len(states) // max(16, CHUNK_NUMBERS // len(table))))
        rows = max(1, -(-len(states) // chunks))
    if not torch.is_grad_enabled():
        return _forward(states, table, bias, labels, weights, rows, (False, False, False))[:2]
    total, right = _Loss.apply(states, table, bias, labels, weights, rows)  # type: ignore[no-untyped-call]
    return total, right


def _forward(
    states: Tensor, table: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, rows: int, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Loss, right rows, and the gradients of states, table and bias where they are ``wanted``."""
    exact = torch.promote_types(states.dtype, torch.float32)
    gradients = [torch.zeros_like(t) if w else None for t, w in zip((states, table, bias), wanted, strict=True)]
    of_states, of_table, of_bias = gradients
    if torch.is_autocast_enabled(states.device.type):
        low = torch.get_autocast_dtype(states.device.type)
        states, table, bias = states.to(low), table.to(low), bias.to(low)  # once, not for every chunk
    total = torch.zeros((), dtype=exact, device=states.device)
    right = torch.zeros((), device=states.device)
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        own, label, weight = states[part], labels[part], weights[part].to(exact)
        logits = F.linear(own, table, bias)
        right += (logits.argmax(1) == label).sum()
        slopes = torch.log_softmax(logits.to(exact), dim=1)
        total -= (slopes.gather(1, label[:, None]).squeeze(1) * weight).sum()
        if not any(wanted):
            continue
        slopes.exp_()
        slopes[torch.arange(len(label), device=label.device), label] -= 1
        slopes *= weight[:, None]
        if of_bias is not None:
            of_bias += slopes.sum(0)
        slopes = slopes.to(table.dtype)
        if of_states is not None:
            of_states[part] = slopes @ table
        if of_table is not None and of_table.dtype == slopes.dtype:
            of_table.addmm_(slopes.T, own)
        elif of_table is not None:
            of_table += slopes.T @ own
    return total, right, gradients


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        total, right, gradients = _forward(states, table, bias, labels, weights, rows, ctx.needs_input_grad[:3])
        ctx.gradients = gradients
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *flowing: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the vocabulary's loss goes backward once only")
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(flowing[0].to(gradient.dtype))  # in place: the table's is as large as the table
        return (*gradients, None, None, None)
