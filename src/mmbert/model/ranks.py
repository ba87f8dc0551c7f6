"""The processes that share a training step: sums over them, and rows of all of them with their gradient.

What a single process computes is left as it is. Everything that runs inside the graph has a process group of its own:
its collectives may come before or after those of DistributedDataParallel, in another order on each process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def leave() -> None:
    """End the communication between processes, once each has done all that it has to; nothing where there is none."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _made_for.cache_clear()


def add_up(values: Tensor) -> Tensor:
    """[k] numbers in double precision to their sums over all processes, on the CPU."""
    if world_size() == 1:
        return values
    summed = values.to(_device(), copy=True)
    dist.all_reduce(summed)
    return summed.cpu()


def gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every process, in their order. (Pickled, so only ever among the processes of one run.)"""
    found: list[Any] = [value]
    if world_size() > 1:
        found = [None] * world_size()
        dist.all_gather_object(found, value, group=_group())
    return found


@dataclass
class Gathered:
    """Rows of all processes.

    Attributes:
        rows: [N, ...] in order of the processes.
        start: row at which this process's own begin.
    """

    rows: Tensor
    start: int


def gather_rows(values: Tensor) -> Gathered:
    """[n, ...] rows, of another number on each process, to those of all.

    The gradient of a row is the sum over the processes of what each lets flow into it, so that every process may
    compute its own share of a loss that reads all rows. All processes have to call this, and to use its result, in the
    same order.
    """
    if world_size() == 1:
        return Gathered(values, 0)
    own = torch.tensor([len(values)], device=values.device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own, group=_group())
    sizes = [int(count) for count in counts]
    if not any(sizes):
        return Gathered(values, 0)
    return Gathered(_GatherRows.apply(values, sizes), sum(sizes[: rank()]))  # type: ignore[no-untyped-call]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = values.new_zeros(max(sizes), *values.shape[1:])  # collectives want one size
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=_group())
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=_group())
        return summed.split(ctx.sizes)[rank()], None


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _group() -> Any:
    return _made_for(id(dist.group.WORLD))


@cache
def _made_for(world: int) -> Any:
    return dist.new_group()
