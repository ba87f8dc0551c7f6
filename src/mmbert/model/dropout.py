"""Dropout that is quick on a CPU, where drawing the mask is otherwise a good part of a small model's training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmbert.model.recompute import recomputable


class _Dropped(torch.autograd.Function):
    """``values`` times 0 or ``scale``, of which one byte per value is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, stays: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(stays)
        ctx.scale = scale
        return values * _factors(stays, scale, values.dtype)

    @staticmethod
    def backward(ctx: Any, flowing: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (stays,) = ctx.saved_tensors
        return flowing * _factors(stays, ctx.scale, flowing.dtype), None, None


def _factors(stays: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return stays.to(dtype).mul_(scale)


def dropout(values: Tensor, rate: float) -> Tensor:
    """Zero each value with probability ``rate`` and divide the others by ``1 - rate``.

    On a CPU PyTorch draws one random number per value, in one thread. Here one 64-bit number serves four values, so
    that ``rate`` is rounded to a multiple of 2^-16.

    Args:
        values: of any shape.
        rate: 0 returns ``values`` as they are.
    """
    if not rate:
        return values
    if values.device.type != "cpu" or rate > 0.99:
        return nn.functional.dropout(values, rate)
    count = values.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[:count].view(values.shape)
    stays = torch.empty(values.shape, dtype=torch.uint8)
    torch.ge(draws, round(rate * 2**16) - 2**15, out=stays)  # 1 where the value stays
    scale = 1 / (1 - rate)
    result: Tensor = _Dropped.apply(values, stays, scale)  # type: ignore[no-untyped-call]
    kept = values.detach()
    return recomputable(result, lambda: kept * _factors(stays, scale, kept.dtype))


class Dropout(nn.Dropout):
    """``nn.Dropout`` by :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in PyTorch)
        """Values of any shape; unchanged in evaluation."""
        return dropout(input, self.p if self.training else 0.0)
