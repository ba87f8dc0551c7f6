"""In which precision a run computes; at its start it can be measured whether bf16 pays on this machine."""

from __future__ import annotations

import time

import torch

from mmbert.errors import ConfigError
from mmbert.model.ranks import add_up, world_size


def bf16_is_faster(size: int = 1024, repeats: int = 5) -> bool:
    """Whether a bf16 matrix product beats fp32 here by a third or more.

    GPUs are asked whether they have bf16 units; CPUs are timed (best of ``repeats`` products of [size, size]), since
    some have bf16 instructions and others only emulate them.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def best(dtype: torch.dtype) -> float:
        a = torch.ones(size, size, dtype=dtype)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return best(torch.bfloat16) * 4 / 3 < best(torch.float32)


def choose(precision: str) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` is bf16 where it is faster on the machines of all processes.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision fp16 needs a CUDA GPU", hint="take bf16, auto or fp32")
    if precision != "auto":
        return precision
    faster = add_up(torch.tensor([float(bf16_is_faster())], dtype=torch.float64))
    return "bf16" if int(faster) == world_size() else "fp32"
