"""Clipping the gradient between the backward pass and the optimiser's step."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PIECE = 2**20
"""Numbers that are added up in their own precision; the pieces' sums are added up in fp64."""


_told: WeakSet[Optimizer] = WeakSet()
"""Optimisers that forget after a step what they were to divide by."""


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, optimizer: Optimizer | None = None) -> Tensor:
    """Scale gradients, in place, so that their norm as one vector is ``limit`` at most (Pascanu et al., 2013).

    On a CPU PyTorch adds up a tensor's squares one after the other in fp32: for the 92 million of a base model's word
    table the norm comes out a percent short, and takes twice as long as here. Other devices are PyTorch's own business.

    Args:
        parameters: those without a gradient are left out.
        limit: more than 0; infinity only measures.
        optimizer: takes a step next. If it is one of PyTorch's fused ones on a CPU, it scales the gradients while it
            reads them, which saves a pass over all of them.

    Returns:
        scalar in fp32: the norm before. Where it is not finite the gradients are not either.
    """
    clipped = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in clipped if parameter.grad is not None]
    if any(gradient.device.type != "cpu" or type(gradient) is not Tensor for gradient in gradients):
        return nn.utils.clip_grad_norm_(clipped, limit)
    _forget(optimizer)
    norm = sum_of_squares(gradients).sqrt()
    if norm <= limit:  # which no norm is that is not a number
        return norm
    if optimizer is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        _divide_in_next_step(optimizer, (norm + 1e-6) / limit)
    else:
        nn.utils.clip_grads_with_norm_(clipped, limit, norm)
    return norm


def _divide_in_next_step(optimizer: Optimizer, divisor: Tensor) -> None:
    """By what is PyTorch's way to tell a fused optimiser the loss scale of fp16."""
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    if optimizer not in _told:
        optimizer.register_step_post_hook(lambda own, *_: _forget(own))
        _told.add(optimizer)


def _forget(optimizer: Optimizer | None) -> None:
    if optimizer in _told:
        optimizer.__dict__.pop("grad_scale", None)


def sum_of_squares(gradients: list[Tensor]) -> Tensor:
    """Of plain tensors of one device, in fp32; on a CPU to fp32's precision however large they are."""
    if not gradients:
        return torch.zeros(())
    if gradients[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(gradients)).square().sum()  # type: ignore[arg-type]
    pieces = [piece for gradient in gradients for piece in gradient.flatten().split(PIECE)]
    squares = [torch.dot(piece, piece) for piece in (p if p.dtype == torch.float64 else p.float() for p in pieces)]
    return torch.stack([square.double() for square in squares]).sum().float()
