"""A folder of coloured pictures with captions in three languages, and a recipe that learns them in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import NAMES, save_picture

from mmbert.training.recipe import Recipe, check_recipe

torch.set_num_threads(1)
DARK = {"en": "dark", "de": "dunkel", "fr": "foncé"}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, plain and dark, with a caption in each of three languages."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for colour, names in NAMES.items():
        for dark in (False, True):
            name = f"{'dark-' if dark else ''}{colour}.png"
            save_picture(folder / name, f"{'dark ' if dark else ''}{colour}", (32, 32))
            captions = {f"caption_{lang}": f"{DARK[lang]} {names[lang]}" if dark else names[lang] for lang in DARK}
            rows.append({"file_name": name, **captions})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    return base | {
        k: merged(base[k], v) if isinstance(base.get(k), dict) and isinstance(v, dict) else v for k, v in top.items()
    }


@pytest.fixture(scope="session")
def recipe_of(photos: Path):  # type: ignore[no-untyped-def]
    def make(**changes: Any) -> Recipe:
        """The small recipe with changes, section by section."""
        small = {
            "name": "colours",
            "description": "Knows six colours.",
            "seed": 3,
            "steps": 8,
            "deterministic": True,
            "model": {
                "config": {
                    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
                    "hidden_dropout_prob": 0.1, "max_position_embeddings": 40, "visual_size": 64,
                    "initializer_range": 0.2, "visual_scale_object_init": 1.0, "coordinate_frequencies": 4,
                    "num_region_classes": 0, "region_regression": True, "embedding_size": 16, "max_text_tokens": 16,
                    "vision": {"kind": "grid", "backbone": "test_vit", "image_size": 64},
                },
                "tokenizer": {"vocab_size": 300},
            },
            "components": {
                "main": {
                    "data": str(photos), "task": "retrieval", "options": {"texts_per_record": 3},
                    "objectives": {"itc": {}, "proxy": {}, "itm_hard": {"weight": 0.5, "pairs": 8}}, "records": 5,
                },
                "masked": {
                    "data": str(photos), "task": "pretraining", "objectives": {"mlm": {}, "mvfr": {}}, "tokens": 60,
                },
            },
            "optimizer": {"lr": 0.01, "ema": 0.9},
            "log_every": 1,
        }  # fmt: skip
        return check_recipe(merged(small, changes), where="test")

    return make
