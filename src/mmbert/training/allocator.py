"""Memory of a training run on a CPU: what one step gives back, the next one takes again."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""The parameters' numbers in glibc's ``malloc.h``."""
USUAL_TRIM_THRESHOLD, USUAL_MMAP_MAX = 64 << 20, 65536
"""glibc's own: the largest that it sets for trimming by itself, and its number of mapped blocks."""


@contextmanager
def keeping_memory() -> Iterator[bool]:
    """Let the process keep the memory that is freed inside; afterwards it is given back to the system.

    glibc asks the system for each large block and returns it when it is freed. The activations of a training step are
    such blocks, so that every step has all its pages mapped and zeroed anew, which took up to a third of its time
    (`benchmarks/train_step.py`). The most that is held does not grow.

    Yields:
        whether the C library can be told so: glibc can, others are left as they are.
    """
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is None:
        yield False
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, -1)  # never
    try:
        yield True
    finally:
        library.mallopt(MMAP_MAX, USUAL_MMAP_MAX)
        library.mallopt(TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        library.malloc_trim(0)
