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

from mmbert.model.linear import ROWS

CHUNK_NUMBERS = 24_000_000
"""Logits per chunk, at most: 96 MB in fp32. Each chunk adds to the whole table's gradient, so few are better than many;
more than some hundred rows gain nothing (:data:`CHUNK_ROWS`)."""
CHUNK_ROWS = 384


def vocabulary_loss(
    states: Tensor,
    table: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    rows: int | None = None,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the cross entropies of ``states @ table.T + bias``, and how many rows are right.

    Args:
        states: [M, H].
        table, bias: [K, H] and [K].
        labels: [M].
        weights: [M] of each row in the sum; what has none is not counted among the right ones either.
        rows: per chunk; None: as many as :data:`CHUNK_NUMBERS` allows.
        smoothing: share of each label that goes to all K words alike (Szegedy et al., 2016).

    Returns:
        three scalars: the loss, the number of right rows, the weighted cross entropies without smoothing. Only the
        first has a gradient.
    """
    if rows is None:
        rows = min(max(ROWS, CHUNK_NUMBERS // len(table) // ROWS * ROWS), CHUNK_ROWS)
    if not torch.is_grad_enabled():
        return _forward(states, table, bias, labels, weights, rows, smoothing, (False, False, False))[:3]
    found: tuple[Tensor, Tensor, Tensor] = _Loss.apply(states, table, bias, labels, weights, rows, smoothing)  # type: ignore[no-untyped-call]
    return found


def _forward(
    states: Tensor,
    table: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    rows: int,
    smoothing: float,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """Loss, right rows, unsmoothed loss, and the gradients of states, table and bias where they are ``wanted``.

    With L the log softmax, y the label and s the smoothing, a row's loss is ``-(1 - s) L_y - s mean(L)``, and its slope
    along logit k is ``exp(L_k) - (1 - s) [k = y] - s / K``.
    """
    exact, stored = torch.promote_types(states.dtype, torch.float32), table.dtype
    of_states = torch.zeros_like(states) if wanted[0] else None
    of_bias = torch.zeros_like(bias) if wanted[2] else None
    of_table: Tensor | None = None  # made by the first chunk: to fill it with zeros takes as long as a product
    # The mean of the table, whose product with a state is the mean of its logits.
    middle, middle_bias = (table.mean(0), bias.mean()) if smoothing else (table.new_zeros(()), bias.new_zeros(()))
    if torch.is_autocast_enabled(states.device.type):
        low = torch.get_autocast_dtype(states.device.type)
        states, table, bias = states.to(low), table.to(low), bias.to(low)  # once, not for every chunk
    total = torch.zeros((), dtype=exact, device=states.device)
    spread = torch.zeros_like(total)
    right = torch.zeros((), device=states.device)
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        own, label, weight = states[part], labels[part], weights[part].to(exact)
        logits = F.linear(own, table, bias).to(exact)
        chosen, best = logits.gather(1, label[:, None]).squeeze(1), logits.amax(1)
        right += ((chosen == best) & (weight > 0)).sum()
        slopes = logits.sub_(best[:, None]).exp_()  # in place: the logits are the largest tensor there is
        sums = slopes.sum(1)
        normaliser = best + sums.log()
        total += ((normaliser - chosen) * weight).sum()
        if smoothing:
            spread -= ((own.to(exact) @ middle.to(exact) + middle_bias - normaliser) * weight).sum()
        if not any(wanted):
            continue
        slopes.mul_(sums.reciprocal()[:, None])
        slopes[torch.arange(len(label), device=label.device), label] -= 1 - smoothing
        if of_bias is not None:
            of_bias += weight @ slopes - smoothing / len(table) * weight.sum()
        slopes = slopes.to(table.dtype)
        if of_states is not None:
            of_states[part] = (slopes @ table - smoothing * middle) * weight[:, None]
        if wanted[1]:
            weighted = own * weight[:, None].to(own.dtype)
            if of_table is None:
                of_table = (slopes.T @ weighted).to(stored)
            elif of_table.dtype == slopes.dtype:
                of_table.addmm_(slopes.T, weighted)
            else:
                of_table += slopes.T @ weighted
            if smoothing:
                of_table -= smoothing / len(table) * weighted.to(of_table.dtype).sum(0)
    if wanted[1] and of_table is None:  # no row at all
        of_table = torch.zeros_like(table, dtype=stored)
    return (1 - smoothing) * total + smoothing * spread, right, total, [of_states, of_table, of_bias]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor,
        labels: Tensor,
        weights: Tensor,
        rows: int,
        smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = ctx.needs_input_grad[:3]
        total, right, plain, ctx.gradients = _forward(states, table, bias, labels, weights, rows, smoothing, wanted)
        ctx.mark_non_differentiable(right, plain)
        return total, right, plain

    @staticmethod
    def backward(ctx: Any, *flowing: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the vocabulary's loss goes backward once only")
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(flowing[0].to(gradient.dtype))  # in place: the table's is as large as the table
        return (*gradients, None, None, None, None)
