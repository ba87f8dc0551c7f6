"""Memory that is freed in a training run: kept for the next step, or returned."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from mmbert.training.allocator import freed_memory

START = """
import resource
import psutil
import torch
from mmbert.training.allocator import freed_memory

def held():
    return psutil.Process().memory_info().rss
"""
KEPT = """
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.empty(30_000_000).fill_(1) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with freed_memory("kept"):
    faults()
    inside = faults()
    full = held()
print(outside, inside, full - held())
"""
RETURNED = """
with freed_memory("returned"):
    blocks = [torch.empty(1_000_000).fill_(1) for _ in range(101)]  # of 4 MB
    full, last = held(), blocks.pop()  # what is last does not let the heap shrink
    del blocks
    print(full - held())
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do with memory")


def said(script: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


def test_kept_memory_is_taken_again_and_returned_in_the_end() -> None:
    outside, inside, in_the_end = said(KEPT)
    assert inside < outside / 10
    assert in_the_end > 300_000_000


def test_returned_memory_is_returned_at_once() -> None:
    assert said(RETURNED)[0] > 390_000_000


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory("kept") as kept:
        assert not kept
