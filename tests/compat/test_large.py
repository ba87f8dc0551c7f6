"""A checkpoint of base size: conversion stays within a minute and three times its size of memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from originals import WORDS, Sizes, pretraining_shapes, random_state, write_checkpoint, write_vocabulary

BASE = Sizes(
    hidden=768, layers=12, heads=12, intermediate=3072, vocabulary=119_547, positions=512, visual=768, classes=1601
)


# A small process in between: Linux counts what the parent has in RAM as its child's, at its start.
MEASURE = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""


def make_checkpoint(path: Path, zipped: bool) -> None:
    write_checkpoint(path, random_state(pretraining_shapes(BASE)), zipped=zipped)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="memory of another process is only told on Unix")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "PyTorch 1.x"])
def test_a_checkpoint_of_base_size_converts_quickly_and_in_little_memory(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "base.model"
    maker = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(path, zipped))
    maker.start()
    maker.join()
    words = write_vocabulary(tmp_path / "words", WORDS)
    size = path.stat().st_size
    assert size > 700e6
    options = ["--task", "pretraining", "--tokenizer", str(words), "--out", str(tmp_path / "out"), "--json"]
    command = [sys.executable, "-m", "mmbert", "convert", str(path), *options]
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - start < 60
    assert int(run.stdout.splitlines()[-1]) * 1024 < 3 * size
