"""What becomes of the memory that a training run frees on a CPU: kept for its next step, or returned to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal

FAST_MAX, TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = 1, -1, -3, -4
"""The parameters' numbers in glibc's ``malloc.h``."""
USUAL = {FAST_MAX: 128, TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
"""glibc's own: the largest sizes that it comes to by itself, and its number of mapped blocks."""
SETTINGS = {
    # No block of its own from the system, and never back; no small ones put aside (see `tuned`).
    "kept": {MMAP_MAX: 0, TRIM_THRESHOLD: -1, FAST_MAX: 0},
    "returned": {MMAP_THRESHOLD: 1 << 20},  # each large block from the system, and back
}
TUNABLES, NO_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count"


def tuned(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a process keeps freed memory in one piece.

    glibc puts small blocks that are freed aside, for whoever wants one of their size next. They are not joined with
    what is free beside them, so that a small one between two large ones keeps these apart, and a tensor that would fit
    into both gets new memory. A training step frees thousands of small blocks between its tensors: the memory that it
    kept was a tenth more than it is now (`benchmarks/train_step.py`). The cache can only be turned off where a
    process starts, so the environment says it; :data:`SETTINGS` has the rest.

    Args:
        environment: to add to.

    Returns:
        ``environment``, and ``GLIBC_TUNABLES`` in it, unless it says something of that cache already or the C library
        is another.
    """
    found = dict(environment)
    said = found.get(TUNABLES, "")
    if platform.libc_ver()[0] == "glibc" and NO_CACHE not in said:
        found[TUNABLES] = ":".join(filter(None, [said, f"{NO_CACHE}=0"]))
    return found


def restart_tuned() -> None:
    """Start this program anew, with the same arguments and process number, in a :func:`tuned` environment.

    Does nothing in one. For a program's first line: whatever it has done by then is done twice.
    """
    environment = tuned(os.environ)
    if sys.executable and environment != dict(os.environ):
        with suppress(OSError):  # then it goes on as it is
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


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
