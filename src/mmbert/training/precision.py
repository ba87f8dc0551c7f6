"""Measuring, at the start of a run, whether bf16 pays on this machine."""

from __future__ import annotations

import time

import torch


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
