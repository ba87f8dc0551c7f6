"""Tensors that the backward pass makes again instead of keeping them.

Between forward and backward a layer would keep what went into each product: the result of LayerNorm beside its input,
that of GELU beside its input, what dropout leaves beside what it got. Each of these follows from a tensor that is kept
anyway by an operation that costs next to nothing, where activation checkpointing (Chen et al., 2016) runs whole layers,
products and all, a second time. Same bits, about half of the memory (`benchmarks/train_step.py`). Attention makes its
weights again by itself (:mod:`mmbert.model.attention`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class _Recomputable:
    """How a tensor is made again."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]


_known: ContextVar[dict[int, _Recomputable] | None] = ContextVar("known", default=None)
"""By address, for as long as the tensor is there, so that an address means the same until it is asked for."""


@contextmanager
def recomputing() -> Iterator[None]:
    """Inside, what is told to :func:`recomputable` is not kept for the backward pass."""
    known: dict[int, _Recomputable] = {}

    def pack(kept: Tensor) -> Tensor | _Recomputable:
        again = known.get(kept.data_ptr()) if known and kept.layout is torch.strided and kept.is_contiguous() else None
        if again is None or again.shape != kept.shape or again.dtype != kept.dtype:
            # Never the tensor itself: an operation that keeps its own result would be kept by it in turn, and where no
            # loss reads the result, no backward pass ends that.
            return kept.detach()
        return again

    def unpack(kept: Tensor | _Recomputable) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return kept.make()

    before = _known.set(known)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _known.reset(before)


def recomputing_now() -> bool:
    """Whether :func:`recomputable` is listened to: inside of :func:`recomputing`, where gradients are wanted."""
    return not torch.compiler.is_compiling() and _known.get() is not None and torch.is_grad_enabled()


def recomputable(result: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """Say how ``result`` can be made again.

    Args:
        result: a tensor that whatever takes it next would keep.
        make: makes it, bit by bit. It must not hold ``result`` itself, nor anything that changes before the backward
            pass.

    Returns:
        ``result``.
    """
    if not recomputing_now():
        return result
    known = _known.get()
    assert known is not None
    address = result.data_ptr()
    known[address] = _Recomputable(result.shape, result.dtype, make)
    weakref.finalize(result, known.pop, address, None).atexit = False
    return result


def recomputed_norm(norm: nn.LayerNorm, values: Tensor) -> Tensor:
    """LayerNorm of [..., H], of which the backward pass keeps the input only."""
    result: Tensor = norm(values)
    if not recomputing_now():
        return result
    kept, shape, eps = values.detach(), norm.normalized_shape, norm.eps
    # Copies: a sharded module gives its weights back after the forward pass.
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    return recomputable(result, lambda: nn.functional.layer_norm(kept, shape, weight, bias, eps))


def recomputed_activation(activation: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """An activation without weights, of which the backward pass keeps the input only."""
    result = activation(values)
    if not recomputing_now():
        return result
    kept = values.detach()
    return recomputable(result, lambda: activation(kept))


class LayerStack(nn.Module):
    """Layers of which, with activation checkpointing, only the inputs are kept.

    ``gradient_checkpointing`` is set, with the function, by :func:`checkpoint_layers` and by transformers'
    ``gradient_checkpointing_enable``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint

    def run_layer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a layer's ``function`` gives; in training it may be called again in the backward pass."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(function, *arguments)
        return function(*arguments)


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only the inputs of the layers of all :class:`LayerStack` in ``model``; random numbers are drawn again."""
    for module in model.modules():
        if isinstance(module, LayerStack):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
