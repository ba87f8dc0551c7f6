"""Memory that is freed in a training run: kept for the next step, or returned."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mmbert.training.allocator import TUNABLES, freed_memory, tuned

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


JOINED = """
import ctypes

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Heap
with freed_memory("kept"):
    kept, passing = [], []
    for number in range(40):  # two large blocks and a small one between them, of ever another size
        passing += [torch.empty(500_000), torch.empty(50 + 4 * number), torch.empty(500_000)]
        kept.append(torch.empty(300_000))
    passing.clear()
    before = library.mallinfo2().arena
    kept += [torch.empty(900_000) for _ in range(40)]
    print(library.mallinfo2().arena - before)
"""


def said(script: str, environment: dict[str, str] | None = None) -> list[int]:
    command = [sys.executable, "-c", START + script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return list(map(int, done.stdout.split()))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this glibc does not say how large its heap is")
def test_places_that_are_free_are_joined_although_a_small_one_was_between() -> None:
    plain = {name: value for name, value in os.environ.items() if name != TUNABLES}
    assert said(JOINED, tuned(plain)) == [0]
    assert said(JOINED, plain)[0] > 3_000_000


def test_what_the_environment_says_is_added_to() -> None:
    assert tuned({"A": "b"}) == {"A": "b", TUNABLES: "glibc.malloc.tcache_count=0"}
    assert tuned({TUNABLES: "glibc.malloc.check=0"})[TUNABLES] == "glibc.malloc.check=0:glibc.malloc.tcache_count=0"
    for chosen in ("glibc.malloc.tcache_count=3", "a=1:glibc.malloc.tcache_count=0"):
        assert tuned({TUNABLES: chosen}) == {TUNABLES: chosen}


RESTARTED = """
import os, sys
from mmbert.training.allocator import restart_tuned
print("started", os.getpid(), flush=True)
restart_tuned()
print(os.getpid(), os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


def test_a_program_starts_anew_once_with_what_it_was_given(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(RESTARTED, "utf-8")
    plain = {name: value for name, value in os.environ.items() if name != TUNABLES}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "a b", "--c=d"],
        capture_output=True,
        text=True,
        check=True,
        env=plain,
    )
    first, second, last = done.stdout.splitlines()
    number = first.split()[1]
    assert first == second == f"started {number}"
    assert last == f"{number} glibc.malloc.tcache_count=0 a b --c=d"


def test_kept_memory_is_taken_again_and_returned_in_the_end() -> None:
    outside, inside, in_the_end = said(KEPT)
    assert inside < outside / 10
    assert in_the_end > 300_000_000


def test_returned_memory_is_returned_at_once() -> None:
    assert said(RETURNED)[0] > 390_000_000


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tuned({"A": "b"}) == {"A": "b"}
    with freed_memory("kept") as kept:
        assert not kept
