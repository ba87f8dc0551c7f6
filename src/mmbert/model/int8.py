"""Matrix products in 8 bits, for inference on a CPU: up to four times as fast as in fp32, and a quarter of the reading.

Each row of a weight has a scale of its own, and so has each row of values, found when they come ("W8A8, per channel and
per token": Yao et al., 2022, ZeroQuant). So a row's result does not depend on the rows beside it. Sums are exact in 32
bits. Weights stay in fp32 beside their copies: whatever needs a gradient, and what is saved, knows nothing of this.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mmbert.errors import UsageError
from mmbert.model.clock import least_seconds
from mmbert.model.kept import Kept

_PRODUCT = getattr(torch.ops.onednn, "qlinear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""The operator that torch.compile puts in the place of a quantised linear layer: unsigned values, signed weights."""

_MIDDLE = 128
"""Where zero is in unsigned values."""
COARSE = 0.02
"""Of a weight's copy: off by so much of the weight's size, it is not used. Weights are off by less than half of that,
unless single numbers in their rows are far larger than the others."""
_ROWS_AT_ONCE = 4096
"""Rows of a weight that are quantised together: what is in between stays in the cache."""


class Int8Weight:
    """An [O, I] weight in 8 bits, each row with the scale that brings its largest number to the largest of 8 bits.

    Attributes:
        scales: [O] what one step of each row is worth.
        error: size of what is off, as a share of the weight's size.
    """

    def __init__(self, weight: Tensor) -> None:
        most, off, size = largest_weight(), 0.0, 0.0
        rounded = torch.empty(weight.shape, dtype=torch.int8)
        self.scales = torch.empty(len(weight))
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = weight[rows].float()
            scales = largest(part).div_(most)
            self.scales[rows] = scales.squeeze(1)
            steps = part.div(scales).round_()
            rounded[rows] = steps
            size += float(part.square().sum())
            off += float(steps.mul_(scales).sub_(part).square_().sum())
        self.error = (off / size) ** 0.5 if size else 0.0
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)

    def product(self, values: Tensor, bias: Tensor | None) -> Tensor:
        """[..., I] fp32 values to [..., O], as ``nn.functional.linear``."""
        rows = values.reshape(-1, values.shape[-1])
        if not len(rows):
            return values.new_zeros(*values.shape[:-1], len(self.scales))
        scales = largest(rows).div_(127)
        # Signed numbers are made, since PyTorch converts to them faster, and are unsigned by turning the first bit.
        signed = rows.div(scales).round_().to(torch.int8, memory_format=torch.contiguous_format)
        unsigned = signed.view(torch.uint8).bitwise_xor_(_MIDDLE)
        found = _multiply(unsigned, self._packed, self.scales, self._zeros)
        found = found.mul_(scales) if bias is None else torch.addcmul(bias, found, scales)
        return found.view(*values.shape[:-1], -1)


def largest(rows: Tensor) -> Tensor:
    """[n, I] to [n, 1]: the largest size of a number in each row, but more than 0."""
    return torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_()).clamp_(min=1e-30)


def _multiply(unsigned: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    rest: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")  # neither bias nor what follows the product
    found: Tensor = _PRODUCT(unsigned, 1.0, _MIDDLE, packed, scales, zeros, *rest)  # type: ignore[misc]
    return found


def quantised(weight: Tensor) -> Int8Weight | None:
    """A weight's copy in 8 bits; None where that would be too coarse (:data:`COARSE`)."""
    made = Int8Weight(weight)
    return made if made.error <= COARSE else None  # not a number: None


Copy = Kept[Int8Weight | None]
"""A weight's copy in 8 bits, or that it has none."""


@cache
def largest_weight() -> int:
    """The largest number that a weight may have for sums to be exact on this processor.

    127; 0 if there are no such products; 63 where two products are added in 16 bits (x86 without VNNI).
    """
    if _PRODUCT is None:
        return 0
    values = torch.full((4, 64), 255, dtype=torch.uint8)
    for most in (127, 63):
        weight = torch.full((16, 64), most, dtype=torch.int8)
        try:
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
            found = _multiply(values, packed, torch.ones(16), torch.zeros(16, dtype=torch.int64))
        except (RuntimeError, AttributeError):
            return 0
        if bool((found == (255 - _MIDDLE) * most * 64).all()):
            return most
    return 0


def check_int8() -> None:
    """Make sure that there are products in 8 bits.

    Raises:
        UsageError: there are none.
    """
    if not largest_weight():
        raise UsageError("PyTorch has no products in 8 bits on this machine", hint="leave int8 out")


@cache
def int8_is_faster(rows: int = 256, size: int = 768) -> bool:
    """Whether products in 8 bits, with all that belongs to them, beat fp32 on this processor by a third or more."""
    if not largest_weight():
        return False
    values, weight = torch.ones(rows, size), torch.ones(size, size)
    made = Int8Weight(weight)

    with torch.inference_mode():
        in_8_bits = least_seconds(lambda: made.product(values, None))
        return in_8_bits * 4 / 3 < least_seconds(lambda: nn.functional.linear(values, weight))
