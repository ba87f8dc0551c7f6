"""A small model with random weights and a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tiny import SENTENCES, shake, tiny_config

from mmbert import MMBert, MMBertForPreTraining, MMBertProcessor
from mmbert.model.modeling import build_vision
from mmbert.text.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def bert() -> MMBert:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(SENTENCES * 3, vocab_size=150)
    vision = {"kind": "grid", "backbone": "test_vit", "image_size": 64}
    size = build_vision(vision).feature_size
    config = tiny_config(
        vocab_size=len(tokenizer), vision=vision, region_feature_size=size, num_region_classes=0, max_text_tokens=24
    )
    model = MMBertForPreTraining(config)
    shake(model, 1)
    return MMBert(model, MMBertProcessor(tokenizer, config, model.trunk.vision))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    files = []
    for i, colour in enumerate(("red", "navy", "gold", "green", "pink")):
        image = Image.new("RGB", (40 + 7 * i, 64 - 5 * i), "white")
        ImageDraw.Draw(image).ellipse((5, 5, 25 + 3 * i, 30), fill=colour)
        files.append(folder / f"{i}.png")
        image.save(files[-1])
    return files
