"""Small corpora in the layouts of the real ones, and the real texts where they lie beside the repository."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from mmbert.data.records import Record, Source

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where the real texts are not there."""
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"no shared/data/{name} beside the repository")


def write_lines(path: Path, lines: Iterable[str], encoding: str = "utf-8") -> Path:
    """A text file, packed where its name ends in ``.gz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(f"{line}\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_image(path: Path, colour: str = "red", size: tuple[int, int] = (12, 9)) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def records(source: Source) -> list[Record]:
    """All records."""
    return [source[i] for i in range(len(source))]


def write_multi30k(root: Path, languages: tuple[str, ...] = ("en", "de"), count: int = 4) -> Path:
    """Task 1 with two splits; images below ``images``."""
    for split, stem in (("a", "train"), ("b", "val")):
        names = [f"{split}{i}.jpg" for i in range(count)]
        write_lines(root / f"task1/image_splits/{stem}.txt", names)
        for code in languages:
            suffix = ".gz" if code == "de" else ""
            write_lines(root / f"task1/raw/{stem}.{code}{suffix}", [f" {code} {split} {i} " for i in range(count)])
        for i, name in enumerate(names):
            write_image(root / "images" / name, COLOURS[i % 6], (12 + i, 9 + len(split) + (split == "b")))
    return root
