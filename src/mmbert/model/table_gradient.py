"""One gradient for a table of word vectors that is read in several places.

The input looks up rows of the same table that the output's logits are made with (Press & Wolf, 2017). By itself each
use makes a gradient of the table's size: the look-ups one that is zero but for their rows, each loss another, and the
backward pass adds them up. Here the uses add to one tensor, which a fourth of a base model's weights makes a matter of
memory as well as of time (`benchmarks/train_step.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class TableGradient:
    """What one backward pass has of a table's gradient so far."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add_rows(self, table_rows: int, ids: Tensor, rows: Tensor) -> None:
        """Add [N, H] to the rows ``ids``, which may come more than once."""
        if self._sum is None:
            self._sum = rows.new_zeros(table_rows, rows.shape[1])
        self._sum.index_put_((ids,), rows, accumulate=True)

    def add_product(self, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
        """Add ``left.T @ right`` of [N, K] and [N, H] in a table of ``dtype``; of several the first fills nothing."""
        if self._sum is None:
            self._sum = (left.T @ right).to(dtype)
        elif self._sum.dtype == left.dtype:
            self._sum.addmm_(left.T, right)
        else:
            self._sum += left.T @ right

    def add(self, values: Tensor) -> None:
        """Add [K, H], or [H] to each row; the former is taken over where there is nothing yet."""
        if self._sum is None and values.dim() == 2:
            self._sum = values
        else:
            assert self._sum is not None
            self._sum += values

    def take(self) -> Tensor | None:
        """The sum, which is this object's no longer: the backward pass takes over a tensor that only it has."""
        found, self._sum = self._sum, None
        return found


class _Whole(torch.autograd.Function):
    """A number that stands for the table in the graph: its backward pass comes after that of every use."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, gradient: TableGradient) -> Tensor:
        ctx.gradient = gradient
        return table.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        return ctx.gradient.take(), None


class _Rows(torch.autograd.Function):
    """Look-ups whose gradient goes to a :class:`TableGradient`."""

    @staticmethod
    def forward(
        ctx: Any, stands_for: Tensor, table: Tensor, ids: Tensor, padding: int | None, gradient: TableGradient
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rest = len(table), padding, gradient
        return nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, flowing: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        rows, padding, gradient = ctx.rest
        if padding is not None:
            flowing = flowing.masked_fill((ids == padding).unsqueeze(-1), 0.0)
        gradient.add_rows(rows, ids.flatten(), flowing.reshape(-1, flowing.shape[-1]))
        return flowing.new_zeros(()), None, None, None, None


_Shared = dict[int, tuple[Tensor, Tensor, TableGradient]]
_shared: ContextVar[_Shared | None] = ContextVar("shared", default=None)
"""By the table's identity: the table (which keeps the identity its own), what stands for it, its gradient."""


@contextmanager
def one_gradient_per_table() -> Iterator[None]:
    """Inside, all uses of a table in one forward pass share its gradient."""
    before = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(before)


def gradient_of(table: Tensor) -> tuple[Tensor, TableGradient]:
    """What an autograd function that uses [K, H] ``table`` needs to add to its gradient.

    Returns:
        a scalar that stands for the table in the graph (give it to the function, and the function's backward pass
        gives zero back for it), and the gradient to add to before that.
    """
    shared = _shared.get()
    if shared is not None and id(table) in shared:
        _, stands_for, gradient = shared[id(table)]
        return stands_for, gradient
    gradient = TableGradient()
    stands_for = _Whole.apply(table, gradient)  # type: ignore[no-untyped-call]
    if shared is not None:
        shared[id(table)] = table, stands_for, gradient
    return stands_for, gradient


class WordTable(nn.Embedding):
    """``nn.Embedding`` that shares its gradient inside of :func:`one_gradient_per_table`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in PyTorch)
        """[...] ids to [..., H]."""
        shares = _shared.get() is not None and self.weight.requires_grad and torch.is_grad_enabled()
        if not shares or torch.compiler.is_compiling():
            return super().forward(input)
        stands_for, gradient = gradient_of(self.weight)
        found: Tensor = _Rows.apply(stands_for, self.weight.detach(), input, self.padding_idx, gradient)  # type: ignore[no-untyped-call]
        return found
