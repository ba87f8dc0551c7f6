"""Models that answer, small enough to be made while testing, and questions about coloured squares to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tiny import shake
from vl_corpora import vqa_answers, write_json

from mmbert import MMBert, MMBertConfig, MMBertForPreTraining, MMBertProcessor
from mmbert.text.tokenizer import train_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 220), "white": (250, 250, 250)}
LABELS = ["yes", "no", *COLOURS]
LOOKING = {
    "kind": "grid", "backbone": "test_resnet", "image_size": 32, "given_boxes": "crop", "cells": False, "crop_from": 64,
}  # fmt: skip
"""Options of a vision encoder that looks into given boxes."""
SIDE, SQUARE = 64, 20


def answering_model(vision: dict[str, Any] | None = None, *, labels: list[str] | None = None, seed: int = 0) -> MMBert:
    """A model with random weights of which none is zero; ``vision`` are options of its encoder."""
    words = [f"what is {side} of the {name} square? is there one" for side in ("left", "right") for name in COLOURS]
    tokenizer = train_tokenizer(words * 5, vocab_size=80)
    known = LABELS if labels is None else labels
    config = MMBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        visual_size=16, region_feature_size=96, coordinate_frequencies=2, num_region_classes=0, embedding_size=8,
        visual_scale_text_init=1.0, visual_scale_object_init=1.0, vision=vision or LOOKING, max_text_tokens=64,
        heads={"answer": {"kind": "two_layer", "hidden_size": 8, "outputs": len(known) or 6, "labels": known}},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MMBertForPreTraining(config)
    trained = [part for name, part in model.named_children() if name != "trunk"]
    for part in [*trained, model.trunk.encoder, model.trunk.embeddings]:
        shake(part, seed)
    return MMBert(model, MMBertProcessor(tokenizer, model.config, model.trunk.vision))


def draw_two(rng: np.random.Generator) -> tuple[Image.Image, list[str], list[list[int]]]:
    """A picture of two squares, the left one first: names of their colours, boxes x, y, width, height."""
    names = [list(COLOURS)[int(i)] for i in rng.permutation(len(COLOURS))[:2]]
    image, boxes = Image.new("RGB", (SIDE, SIDE), (120, 120, 120)), []
    for number, name in enumerate(names):
        x, y = 32 * number + int(rng.integers(10)), int(rng.integers(40))
        ImageDraw.Draw(image).rectangle((x, y, x + SQUARE - 1, y + SQUARE - 1), fill=COLOURS[name])
        boxes.append([x, y, SQUARE, SQUARE])
    return image, names, boxes


def make_squares(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """The official files of so many pictures a year (``train2014``, …), two questions each, and COCO's of the boxes."""
    rng, image_id = np.random.default_rng(seed), 0
    for year, count in counts.items():
        (root / year).mkdir(parents=True)
        asked: list[Any] = []
        answered: list[Any] = []
        images: list[Any] = []
        objects: list[Any] = []
        for _ in range(count):
            image_id += 1
            image, names, boxes = draw_two(rng)
            file = f"COCO_{year}_{image_id:012d}.jpg"
            image.save(root / year / file, "PNG")
            images.append({"id": image_id, "file_name": file, "width": SIDE, "height": SIDE})
            for box in boxes:
                number = 1000 * image_id + len(objects)
                objects.append({"id": number, "image_id": image_id, "category_id": 1, "bbox": box})
            for number, side in enumerate(("left", "right")):
                names_it = {"image_id": image_id, "question_id": 10 * image_id + number}
                asked.append({**names_it, "question": f"what is {side}?"})
                answered.append(
                    {
                        **names_it,
                        "answers": vqa_answers(names[number]),
                        "multiple_choice_answer": names[number],
                        "answer_type": "other",
                        "question_type": "what is",
                    }
                )
        write_json(root / f"v2_OpenEnded_mscoco_{year}_questions.json", {"questions": asked})
        if year != "test2015":
            write_json(root / f"v2_mscoco_{year}_annotations.json", {"annotations": answered})
        whole = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "object"}]}
        write_json(root / "annotations" / f"instances_{year}.json", whole)
