"""Memory of large tensors on a CPU: kept from step to step instead of being taken from the system anew.

glibc hands every block above some size (at most 32 MB) back to the system when it is freed, and the next such block
comes page by page, each page zeroed: tens of thousands of page faults per step of a small model. PyTorch has no cache
of its own on the CPU.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of malloc.h, without their M_
_MOST = 2**31 - 1
_SPARE = 1 << 26


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, to use it again; the peak stays as it was.

    Returns:
        whether the C library knows how (glibc does).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _MOST), mallopt(_TOP_PAD, _SPARE)])
