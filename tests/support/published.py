"""The published configurations, as YAML files of the originals and as the recipes that we make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from originals import write_yaml

from mmbert.cli.main import run
from mmbert.training.recipe import Recipe, load_recipe

FILE = Path(__file__).parents[3] / "shared" / "spec" / "published-settings.json"
COMMON = "_common (unless a row says otherwise)"
ROWS: dict[str, dict[str, Any]] = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
NAMES = sorted(name for name in ROWS if name != COMMON)


def settings_of(name: str) -> dict[str, Any]:
    """A row with what most share, as a nested YAML file has it."""
    row = ROWS[name]
    flat = {k: v for k, v in ROWS[COMMON].items() if k not in row.get("_absent", ())} | row
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if key != "_absent":
            *sections, last = key.split(".")
            place = nested
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
    data = nested["DATASET"]
    if "0" in data:
        nested["DATASET"] = [data[number] for number in sorted(data)]
    return nested


def written(name: str, folder: Path) -> Path:
    return write_yaml(folder / f"{name.replace('/', '-')}.yaml", settings_of(name))


def recipe_of(name: str, folder: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe that the command makes of a configuration."""
    out = folder / "recipe.yaml"
    assert run(["convert", str(written(name, folder)), "--to", "recipe", "--out", str(out)]) == 0
    return load_recipe(str(out), overrides or [])
