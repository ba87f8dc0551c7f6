"""In which precision a run computes; at its start it can be measured whether bf16 pays on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmbert.errors import ConfigError
from mmbert.model.clock import least_seconds
from mmbert.model.ranks import add_up, world_size


def bf16_is_faster(size: int = 1024, repeats: int = 5) -> bool:
    """Whether a bf16 matrix product beats fp32 here by a third or more.

    GPUs are asked whether they have bf16 units; CPUs are timed (best of ``repeats`` products of [size, size]), since
    some have bf16 instructions and others only emulate them.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(size, size, dtype=dtype)
        return least_seconds(lambda: a @ a, repeats)

    return seconds(torch.bfloat16) * 4 / 3 < seconds(torch.float32)


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


@contextmanager
def arithmetic(*, tf32: bool = False, deterministic: bool = False) -> Iterator[None]:
    """How GPUs compute inside; outside it is as it was.

    Args:
        tf32: fp32 matrix products in TF32.
        deterministic: the same bits each time, where PyTorch has an algorithm that gives them (it warns where not). A
            CPU does so anyway.
    """
    products, exact = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    warns, tuned = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.benchmark
    if tf32:
        torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(exact, warn_only=warns)
        torch.backends.cudnn.benchmark = tuned
