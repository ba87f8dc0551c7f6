"""Dropout that is quick on a CPU, where drawing the mask is otherwise a good part of a small model's training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mmbert.model.recompute import recomputable


@dataclass(frozen=True)
class DropoutMask:
    """Which values stay.

    Attributes:
        kept: one bit per value.
        shape: of the values.
        scale: what is multiplied by where a value stays.
    """

    kept: Tensor
    shape: torch.Size
    scale: float

    @classmethod
    def draw(cls, shape: torch.Size, rate: float) -> tuple[Self, Tensor]:
        """Draw them for values of this shape on a CPU.

        Args:
            shape: of the values.
            rate: probability with which a value does not stay; below 1.

        Returns:
            what to keep for the backward pass, and the same as uint8 ones and zeros of this shape.
        """
        count = shape.numel()
        draws = _draws(count).view(shape)
        stays = torch.empty(shape, dtype=torch.uint8)
        torch.ge(draws, round(rate * 2**16) - 2**15, out=stays)
        return cls(torch.from_numpy(np.packbits(stays.numpy())), shape, 1 / (1 - rate)), stays

    def factors(self, dtype: torch.dtype) -> Tensor:
        """0 or the scale for each value."""
        stays = np.unpackbits(self.kept.numpy(), count=self.shape.numel())
        return _factors(torch.from_numpy(stays).view(self.shape), self.scale, dtype)


def _draws(count: int) -> Tensor:
    """[count] uniform int16 from a fast generator that PyTorch's seeds anew each time."""
    seed = torch.empty((), dtype=torch.int64).random_().item()
    return torch.from_numpy(np.random.SFC64(int(seed)).random_raw((count + 3) // 4).view(np.int16)[:count])


def _factors(stays: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return stays.to(dtype).mul_(scale)


class _Dropped(torch.autograd.Function):
    """``values`` times 0 or ``scale``, of which one bit per value is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, stays: Tensor, drawn: DropoutMask) -> Tensor:
        ctx.save_for_backward(drawn.kept)
        ctx.rest = drawn.shape, drawn.scale
        return _factors(stays, drawn.scale, values.dtype).mul_(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return DropoutMask(kept, *ctx.rest).factors(grad.dtype).mul_(grad), None, None


def dropout(values: Tensor, rate: float) -> Tensor:
    """Zero each value with probability ``rate`` and divide the others by ``1 - rate``.

    On a CPU PyTorch draws one random number per value, in one thread. Here one 64-bit number serves four values, so
    that ``rate`` is rounded to a multiple of 2^-16; it comes from numpy's quickest generator (SFC64: Doty-Humphrey,
    PractRand), which PyTorch's seeds anew each time. Compiled programs stop for it: to draw themselves takes them more
    than twice as long.

    Args:
        values: of any shape.
        rate: 0 returns ``values`` as they are.
    """
    if not rate:
        return values
    if values.device.type != "cpu" or rate > 0.99:
        return nn.functional.dropout(values, rate)
    return _dropped(values, rate)


@torch.compiler.disable
def _dropped(values: Tensor, rate: float) -> Tensor:
    drawn, stays = DropoutMask.draw(values.shape, rate)
    result: Tensor = _Dropped.apply(values, stays, drawn)  # type: ignore[no-untyped-call]
    kept = values.detach()
    return recomputable(result, lambda: drawn.factors(kept.dtype).mul_(kept))


class Dropout(nn.Dropout):
    """``nn.Dropout`` by :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in PyTorch)
        """Values of any shape; unchanged in evaluation."""
        return dropout(input, self.p if self.training else 0.0)
