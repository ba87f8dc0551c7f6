"""Models that ground, small enough to be made while testing, and a corpus of coloured squares they can learn on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tiny import shake
from vl_corpora import write_json

from mmbert import MMBert, MMBertConfig, MMBertForPreTraining, MMBertProcessor
from mmbert.model.modeling import build_vision
from mmbert.text.tokenizer import train_tokenizer

COLOURS = {
    "red": (220, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 220), "yellow": (230, 220, 30),
    "black": (20, 20, 20), "white": (250, 250, 250),
}  # fmt: skip
SQUARE, SIDE = 16, 64
LOOKING = {
    "kind": "grid", "backbone": "test_resnet", "image_size": 32, "given_boxes": "crop", "cells": False, "crop_from": 64,
}  # fmt: skip
"""Options of a vision encoder that looks into given boxes."""


def grounding_model(vision: dict[str, Any] | None = None, *, head: bool = True, seed: int = 0) -> MMBert:
    """A model with random weights of which none is zero; ``vision`` are options of its encoder."""
    tokenizer = train_tokenizer([f"the {name} square" for name in COLOURS] * 5, vocab_size=80)
    encoder = vision or LOOKING
    config = MMBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        visual_size=16, region_feature_size=build_vision(encoder).feature_size, coordinate_frequencies=2,
        num_region_classes=0, embedding_size=8,
        visual_scale_text_init=1.0, visual_scale_object_init=1.0, vision=encoder,
        heads={"grounding": {"kind": "transform", "outputs": 1}} if head else None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MMBertForPreTraining(config)
    trained = [part for name, part in model.named_children() if name != "trunk"]
    for part in [*trained, model.trunk.encoder, model.trunk.embeddings]:
        shake(part, seed)
    return MMBert(model, MMBertProcessor(tokenizer, model.config, model.trunk.vision))


def draw_squares(rng: np.random.Generator, count: int = 4) -> tuple[Image.Image, list[str], list[list[int]]]:
    """A picture with squares of different colours, their names, and their boxes x, y, width, height."""
    names = [list(COLOURS)[int(i)] for i in rng.permutation(len(COLOURS))[:count]]
    image = Image.new("RGB", (SIDE, SIDE), (150, 150, 150))
    boxes = []
    for name, cell in zip(names, rng.permutation(9)[:count], strict=True):
        x, y = (int(cell) % 3 * 21 + int(rng.integers(4)), int(cell) // 3 * 21 + int(rng.integers(4)))
        ImageDraw.Draw(image).rectangle((x, y, x + SQUARE - 1, y + SQUARE - 1), fill=COLOURS[name])
        boxes.append([x, y, SQUARE, SQUARE])
    return image, names, boxes


def make_squares(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """A corpus in RefCOCO's layout: so many pictures of each split, with one expression for each square."""
    rng = np.random.default_rng(seed)
    images: list[Any] = []
    annotations: list[Any] = []
    refs: list[Any] = []
    (root / "train2014").mkdir(parents=True)
    for split in (split for split, count in counts.items() for _ in range(count)):
        image, names, boxes = draw_squares(rng)
        image_id = len(images) + 1
        image.save(root / "train2014" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": SIDE, "height": SIDE})
        for name, box in zip(names, boxes, strict=True):
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": image_id, "category_id": 1, "bbox": box})
            said = f"the {name} square"
            sentence = {"sent": said, "raw": said, "tokens": said.split(), "sent_id": number}
            refs.append(
                {
                    "ann_id": number,
                    "ref_id": number,
                    "image_id": image_id,
                    "split": split,
                    "sentences": [sentence],
                    "sent_ids": [number],
                    "category_id": 1,
                }
            )
    categories = [{"id": 1, "name": "object"}]
    objects = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "refcoco" / "instances.json", objects)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
