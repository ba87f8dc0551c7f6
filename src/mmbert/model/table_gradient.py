"""One gradient for a table of word vectors that is read in several places.

The input looks up rows of the same table that the output's logits are made with (Press & Wolf, 2017). By itself each
use makes a gradient of the table's size: the look-ups one that is zero but for their rows, each loss another, and the
backward pass adds them up. Here there is one, made when all uses have said their part: in a base model, whose table is
half of its weights, a matter of memory as well as of time (`benchmarks/train_step.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class TableGradient:
    """A gradient of [K, H] ``table``, as what it is made of until it is taken.

    It is made last of all gradients, when the backward pass has given back what the layers kept: until then losses over
    M labelled rows hold [M, K] numbers in its place, as long as M is at most H.
    """

    def __init__(self, table: Tensor) -> None:
        self._shape, self._like = table.shape, table.new_zeros(0)
        self._products: list[tuple[Tensor, Tensor]] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._each: Tensor | None = None
        self._sum: Tensor | None = None

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add ``left.T @ right`` of [M, K] and [M, H]."""
        self._products.append((left, right))
        if self._sum is not None or sum(len(rows) for _, rows in self._products) > self._shape[1]:
            self._multiply()  # the sum takes less memory than what it is made of

    def add_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Add [N, H] to the rows ``ids``, which may come more than once."""
        self._rows.append((ids, rows))

    def add_to_each(self, values: Tensor) -> None:
        """Add [H] to each row."""
        self._each = values if self._each is None else self._each + values

    def add(self, other: TableGradient, factor: Tensor) -> None:
        """Add ``factor`` times what the other one is made of; that one is empty afterwards."""
        if other._sum is not None:
            scaled = other._sum.mul_(factor.to(other._sum.dtype))
            self._sum = scaled if self._sum is None else self._sum.add_(scaled)
        for left, right in other._products:
            self.add_product(left, right * factor.to(right.dtype))
        for ids, rows in other._rows:
            self.add_rows(ids, rows * factor.to(rows.dtype))
        if other._each is not None:
            self.add_to_each(other._each * factor.to(other._each.dtype))
        other._clear()

    def take(self) -> Tensor:
        """[K, H], which is this object's no longer: the backward pass takes over a tensor that only it has."""
        self._multiply()
        if self._sum is None:
            self._sum = self._like.new_zeros(self._shape)
        for ids, rows in self._rows:
            self._sum.index_put_((ids,), rows.to(self._sum.dtype), accumulate=True)
        if self._each is not None:
            self._sum += self._each
        found = self._sum
        self._clear()
        return found

    def _multiply(self) -> None:
        for left, right in self._products:
            if self._sum is None:  # to fill it with zeros first takes as long as the product
                self._sum = (left.T @ right).to(self._like.dtype)
            elif self._sum.dtype == left.dtype:
                self._sum.addmm_(left.T, right)
            else:
                self._sum += left.T @ right
        self._products = []

    def _clear(self) -> None:
        self._products, self._rows, self._each, self._sum = [], [], None, None


class _Whole(torch.autograd.Function):
    """A number that stands for the table in the graph: its backward pass comes after that of every use."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, gradient: TableGradient) -> Tensor:
        ctx.gradient = gradient
        return table.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.gradient.take(), None


class _Rows(torch.autograd.Function):
    """Look-ups whose gradient goes to a :class:`TableGradient`."""

    @staticmethod
    def forward(
        ctx: Any, stands_for: Tensor, table: Tensor, ids: Tensor, padding: int | None, gradient: TableGradient
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rest = padding, gradient
        return nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        padding, gradient = ctx.rest
        if padding is not None:
            grad = grad.masked_fill((ids == padding).unsqueeze(-1), 0.0)
        gradient.add_rows(ids.flatten(), grad.reshape(-1, grad.shape[-1]))
        return grad.new_zeros(()), None, None, None, None


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
    gradient = TableGradient(table)
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
