"""What becomes of the memory that a training run frees on a CPU: kept for its next step, or returned to the system."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""The parameters' numbers in glibc's ``malloc.h``."""
USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
"""glibc's own: the largest sizes that it comes to by itself, and its number of mapped blocks."""
SETTINGS = {
    "kept": {MMAP_MAX: 0, TRIM_THRESHOLD: -1},  # no block of its own from the system, and never back
    "returned": {MMAP_THRESHOLD: 1 << 20},  # each large block from the system, and back
}


@contextmanager
def freed_memory(what: Literal["kept", "returned"]) -> Iterator[bool]:
    """What becomes of large blocks that are freed inside; afterwards all that is free goes back to the system.

    By itself glibc does both: the largest blocks it maps anew each time, so that a training step spends up to a third
    of its time on pages that the system zeroes; the others it keeps, and what lies between them is lost.

    Args:
        what: ``kept`` for the next step, which is quickest; ``returned`` at once, which holds no more than what is in
            use, and costs more time than glibc's own way (`benchmarks/train_step.py` measures both).

    Yields:
        whether the C library can be told so: glibc can, others are left as they are.
    """
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is None:
        yield False
        return
    for parameter, value in SETTINGS[what].items():
        library.mallopt(parameter, value)
    try:
        yield True
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
