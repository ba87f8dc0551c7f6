"""Memory that one step frees and the next one takes: pages are mapped once, and returned in the end."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from mmbert.training.allocator import keeping_memory

SCRIPT = """
import resource
import psutil
import torch
from mmbert.training.allocator import keeping_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        kept = [torch.empty(30_000_000).fill_(1) for _ in range(3)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with keeping_memory():
    faults()
    inside = faults()
    held = psutil.Process().memory_info().rss
print(outside, inside, held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_taken_again_inside_and_returned_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    outside, inside, returned = map(int, done.stdout.split())
    assert inside < outside / 10
    assert returned > 300_000_000


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with keeping_memory() as kept:
        assert not kept
