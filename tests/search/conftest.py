"""A folder of coloured pictures with captions, and the model that understands them."""

from __future__ import annotations

from pathlib import Path

import pytest
from colours import NAMES, ColourModel, save_picture, write_metadata


def make_folder(folder: Path) -> list[dict[str, object]]:
    """Plain and dark pictures, with captions in four languages, a year and a place."""
    rows: list[dict[str, object]] = []
    for number, (colour, names) in enumerate(NAMES.items()):
        for shade in ("", "dark "):
            name = f"pictures/{shade}{colour}.png".replace(" ", "-")
            save_picture(folder / name, f"{shade}{colour}")
            captions = {f"caption_{lang}": shade + word for lang, word in names.items()}
            rows.append({"file_name": name, **captions, "year": 2000 + number, "place": "O'Hara" if shade else "Ulm"})
    write_metadata(folder, rows)
    return rows


@pytest.fixture
def model() -> ColourModel:
    return ColourModel()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "photos"
    make_folder(made)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "index"
