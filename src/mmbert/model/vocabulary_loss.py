"""Cross entropy over a large vocabulary in chunks of rows, so that the logits of all rows never exist at once.

For M labelled rows and K words the logits, their softmax and its gradient would be 3 x M x K numbers. Here each chunk's
gradients are computed right after its loss and only they are kept (as Wijmans et al., 2024, "Cut your losses", and
Hsu et al., 2024, "Liger kernel", do on GPUs): [M, H] of the states, and for the table the smaller of its gradient,
[K, H], and the [M, K] and [M, H] whose product that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.linear import ROWS
from mmbert.model.table_gradient import TableGradient, gradient_of

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
    stands_for, gradient = gradient_of(table) if table.requires_grad else (None, None)
    found: tuple[Tensor, Tensor, Tensor] = _Loss.apply(  # type: ignore[no-untyped-call]
        states, table.detach(), bias, labels, weights, rows, smoothing, stands_for, gradient
    )
    return found


@dataclass
class _Gradients:
    """Gradients computed in the forward pass; the backward pass multiplies them by the gradient of the loss.

    Attributes:
        states, table, bias: [M, H], of [K, H], and [K], where they are wanted.
    """

    states: Tensor | None = None
    table: TableGradient | None = None
    bias: Tensor | None = None


def _forward(
    states: Tensor,
    table: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    rows: int,
    smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, _Gradients]:
    """Loss, right rows, unsmoothed loss, and the gradients of states, table and bias where they are ``wanted``.

    With L the log softmax, y the label and s the smoothing, a row's loss is ``-(1 - s) L_y - s mean(L)``, and the
    gradient of its logit k is ``exp(L_k) - (1 - s) [k = y] - s / K``.
    """
    exact, stored = torch.promote_types(states.dtype, torch.float32), table.dtype
    found = _Gradients(
        torch.zeros_like(states) if wanted[0] else None,
        TableGradient(table) if wanted[1] else None,
        torch.zeros_like(bias) if wanted[2] else None,
    )
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
        grad_logits = logits.sub_(best[:, None]).exp_()  # in place: the logits are the largest tensor there is
        sums = grad_logits.sum(1)
        normaliser = best + sums.log()
        total += ((normaliser - chosen) * weight).sum()
        if smoothing:
            spread -= ((own.to(exact) @ middle.to(exact) + middle_bias - normaliser) * weight).sum()
        if not any(wanted):
            continue
        grad_logits.mul_(sums.reciprocal()[:, None])
        grad_logits[torch.arange(len(label), device=label.device), label] -= 1 - smoothing
        if found.bias is not None:
            found.bias += weight @ grad_logits - smoothing / len(table) * weight.sum()
        grad_logits = grad_logits.to(table.dtype)
        if found.states is not None:
            found.states[part] = (grad_logits @ table - smoothing * middle) * weight[:, None]
        if found.table is not None:
            weighted = own * weight[:, None].to(own.dtype)
            found.table.add_product(grad_logits, weighted)
            if smoothing:
                found.table.add_to_each(-smoothing / len(table) * weighted.to(stored).sum(0))
    return (1 - smoothing) * total + smoothing * spread, right, total, found


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
        stands_for: Tensor | None,
        gradient: TableGradient | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = (ctx.needs_input_grad[0], gradient is not None, ctx.needs_input_grad[2])
        total, right, plain, ctx.gradients = _forward(states, table, bias, labels, weights, rows, smoothing, wanted)
        ctx.of_table = gradient
        ctx.mark_non_differentiable(right, plain)
        return total, right, plain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the vocabulary's loss goes backward once only")
        ctx.gradients, factor, stands_for = None, grads[0], None
        if gradients.table is not None:
            ctx.of_table.add(gradients.table, factor)
            stands_for = torch.zeros_like(factor)
        for of_input in (gradients.states, gradients.bias):
            if of_input is not None:
                of_input.mul_(factor.to(of_input.dtype))
        return gradients.states, None, gradients.bias, None, None, None, None, stands_for, None
