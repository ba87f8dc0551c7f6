"""Sharded training: weights, gradients and optimiser states in parts, one on each process (PyTorch's FSDP2).

In: the training module, whole. Out: the same module, whose parameters are shards; and beside it a whole model, filled
when something is to be measured or saved. Checkpoints hold whole tensors, so a run may go on with more processes, or
without shards. (Zhao et al., 2023, PyTorch FSDP; Rajbhandari et al., 2020, ZeRO.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from mmbert.model.ranks import rank, world_size
from mmbert.training.clipping import sum_of_squares
from mmbert.training.module import TrainingModule

BANK = "embedding_head.query_bank"
"""The one buffer that saving a model changes, on the first process."""


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; another tensor as it is."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def gathered(tensors: Mapping[str, Tensor], *, everywhere: bool = False) -> dict[str, Tensor]:
    """Whole tensors. All processes have to call this with the same names at the same time.

    Args:
        everywhere: on all processes, not on the first one alone.

    Returns:
        sharded ones on the CPU, the others as they are; nothing on processes that do not get them.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
        if everywhere or rank() == 0:
            found[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return found


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded as ``like`` is; one of another shape (a step's number) stays as it is."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class Sharded:
    """A training module in shards.

    Args:
        module: whole, the same on all processes; its model is replaced by a sharded copy. Each layer of the encoder
            is gathered when it is needed, the rest for the whole step.
        device: of the training.

    Attributes:
        whole: the model that ``module`` had. It lies on the CPU, and holds what ``fill`` put there last.
    """

    def __init__(self, module: TrainingModule, device: torch.device) -> None:
        self.module = module
        self.device = device
        self.whole = module.model
        module.model = deepcopy(module.model)
        module.reach_all = True
        module.to(device)
        for tensor in (*module.parameters(), *module.buffers()):
            _share(tensor.detach())  # as DistributedDataParallel does
        self.scalars = [parameter for parameter in module.parameters() if parameter.dim() == 0]  # FSDP2 takes none
        mesh = init_device_mesh(device.type, (world_size(),))
        for layer in module.model.trunk.encoder.layers:
            fully_shard(layer, mesh=mesh)
            register_fsdp_forward_method(layer, "write")
        fully_shard(module, mesh=mesh, ignored_params=set(self.scalars))

    # -- the step ---------------------------------------------------------------------------------------------------

    def clip(self, limit: float = math.inf) -> Tensor:
        """Average what the processes found for scalars, scale all gradients down to a norm of ``limit``.

        Returns:
            scalar, their norm before, over all shards.
        """
        for scalar in self.scalars:
            if scalar.grad is not None:
                torch.distributed.all_reduce(scalar.grad)
                scalar.grad /= world_size()
        found = [p.grad for p in self.module.parameters() if p.grad is not None]
        squares = _square(found, sharded=True)
        torch.distributed.all_reduce(squares)
        norm = (squares + _square(found, sharded=False)).sqrt()
        if math.isfinite(limit):
            torch._foreach_mul_([local(grad) for grad in found], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the whole model lies where the training does."""
        self.whole.to(self.device)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.whole.to("cpu")  # type: ignore[arg-type]

    # -- whole tensors ----------------------------------------------------------------------------------------------

    def fill(self, instead: Mapping[str, Tensor]) -> None:
        """Give the whole model the weights, on all processes.

        Args:
            instead: by name, what parameters of the model shall be there (their averages).
        """
        source = self.module.model
        whole = dict(self.whole.named_parameters())
        for name, parameter in source.named_parameters():
            content = gathered({name: instead.get(name, parameter)}, everywhere=True)[name]
            whole[name].data.copy_(content)
        buffers = dict(source.named_buffers())
        for name, buffer in self.whole.named_buffers():
            if name != BANK:
                buffer.copy_(buffers[name])
            buffer.copy_(_share(buffer.to(self.device)))

    def state(self) -> dict[str, Tensor]:
        """The module's whole state, on the first process."""
        found = gathered(self.module.state_dict())
        kept = dict(self.whole.named_buffers()).get(BANK)
        if f"model.{BANK}" in found and kept is not None:
            found[f"model.{BANK}"] = kept
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a whole state."""
        for name, own in self.module.state_dict().items():
            local(own).copy_(local(shard_like(state[name], own)))
        kept = dict(self.whole.named_buffers()).get(BANK)
        if f"model.{BANK}" in state and kept is not None:
            kept.copy_(state[f"model.{BANK}"])

    @staticmethod
    def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state as it is without shards, whole on the first process."""
        found = optimizer.state_dict()
        groups = [group | {"foreach": None, "fused": True} for group in found["param_groups"]]
        whole = {number: gathered(values) for number, values in found["state"].items()}
        return found | {"state": whole, "param_groups": groups}

    @staticmethod
    def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take up an optimiser's whole state."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {
            number: {name: shard_like(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        own = optimizer.param_groups
        groups = [
            group | {how: mine[how] for how in ("foreach", "fused")}  # by which kernels is no part of a run's state
            for group, mine in zip(state["param_groups"], own, strict=True)
        ]
        optimizer.load_state_dict(state | {"state": parts, "param_groups": groups})


def _share(tensor: Tensor) -> Tensor:
    """Take the first process's values."""
    if tensor.numel():
        torch.distributed.broadcast(tensor, 0)
    return tensor


def _square(gradients: list[Tensor], *, sharded: bool) -> Tensor:
    """Sum of squares of this process's parts of sharded gradients, or of those that are whole."""
    chosen = [local(grad) for grad in gradients if isinstance(grad, DTensor) == sharded]
    return sum_of_squares(chosen).to(gradients[0].device)
