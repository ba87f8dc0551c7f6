"""VCR's four choices about an image: how much is won by working on the image once, and by packing?

    python benchmarks/vcr_choices.py            # ResNet-101, shorter side 600 pixels, as published; some minutes
    python benchmarks/vcr_choices.py --quick    # ResNet-50, shorter side 160

Random weights and pixels, sizes as in VCR: about ten objects in an image, texts of 10 to 40 word pieces, trunks of the
size of BERT-base, batches of two images, forward passes. Against

- the same ResNet and transformers' VisualBERT on image and text of each choice in full, four padded rows a question;
- our own network given four copies of each image, so that only the sharing is missing.

The figure without vision starts from features that are there already: the trunk has to read each choice by itself,
since every position attends to all others, so that packing and the shared region embedding are all that is won there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from _common import arguments, base_config, in_turn, peer_config, report
from PIL import Image
from torch import Tensor, nn
from transformers import VisualBertModel

from mmbert import MMBertForMultipleChoice
from mmbert.data.images import BoxedImage, OpenedImage, PixelInput
from mmbert.data.packing import Example, collate
from mmbert.model.packed import PackedBatch
from mmbert.vision.encoders.base import VisionEncoder
from mmbert.vision.regions import GivenBoxes

IMAGES, CHOICES = 2, 4
WIDTH, HEIGHT = 1920, 800
"""A film still."""
WORDS = 2000
"""Rows of the word tables, on both sides: nothing is predicted from them, and more would only fill memory."""


def questions(rng: np.random.Generator) -> list[Example]:
    """Four sequences for each image, in their order."""
    found = []
    for number in range(IMAGES):
        noise = Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
        objects = int(rng.integers(7, 14))
        corners = np.sort(rng.random((objects, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        boxes = corners * np.array([WIDTH - 1, HEIGHT - 1] * 2, dtype=np.float32)
        shown = BoxedImage(OpenedImage(noise.resize((WIDTH, HEIGHT)), f"still {number}"), GivenBoxes(boxes))
        question = rng.integers(1000, WORDS, int(rng.integers(6, 16)))
        for _ in range(CHOICES):
            choice = rng.integers(1000, WORDS, int(rng.integers(3, 24)))
            ids = np.concatenate([[101], question, [102], choice, [102]]).astype(np.int64)
            ties = np.where(rng.random(len(ids)) < 0.15, rng.integers(0, objects + 1, len(ids)), 0)
            found.append(Example(ids, np.repeat([0, 1], [len(question) + 2, len(choice) + 1]), shown, ties))
    return found


def with_own_images(examples: Sequence[Example]) -> list[Example]:
    """The same, each choice with a copy of its image."""
    found = []
    for number, example in enumerate(examples):
        shown = example.image
        assert isinstance(shown, BoxedImage)
        assert isinstance(shown.image, OpenedImage)
        copy = replace(shown, image=OpenedImage(shown.image.image, f"{shown.image.key}, copy {number}"))
        found.append(replace(example, image=copy))
    return found


class Padded(nn.Module):
    """VisualBERT and a linear layer on rows of padded text and regions."""

    def __init__(self) -> None:
        super().__init__()
        config = peer_config()
        config.vocab_size = WORDS
        self.bert = VisualBertModel(config)
        self.choice = nn.Linear(self.bert.config.hidden_size, 1)

    def forward(self, batch: PackedBatch, features: Tensor) -> Tensor:
        """[B] logits of sequences whose regions are the [N, F] rows one after the other."""
        specs = batch.sequences
        words = nn.utils.rnn.pad_sequence([torch.from_numpy(spec.token_ids) for spec in specs], batch_first=True)
        counts = [len(spec.region_rows) for spec in specs]
        regions = nn.utils.rnn.pad_sequence(list(features.split(counts)), batch_first=True)
        kinds = nn.utils.rnn.pad_sequence([torch.as_tensor(spec.segments) for spec in specs], batch_first=True)
        seen = torch.arange(regions.shape[1]) < torch.tensor(counts).unsqueeze(1)
        output = self.bert(
            input_ids=words,
            attention_mask=(words > 0).long(),
            token_type_ids=kinds,
            visual_embeds=regions,
            visual_attention_mask=seen.long(),
        )
        return self.choice(output.pooler_output).squeeze(1)


@torch.inference_mode()
def measure(layers: int, short_side: int, rounds: int) -> None:
    """Print the figures."""
    torch.manual_seed(0)
    vision = {"kind": "resnet", "layers": layers, "short_side": short_side, "long_side": 2 * short_side}
    config = base_config(vision=vision, heads={"choice": {"kind": "linear", "outputs": 1}})
    config.vocab_size, config.with_mlm_head, config.num_region_classes = WORDS, False, 0
    ours, peer = MMBertForMultipleChoice(config).eval(), Padded().eval()
    encoder = ours.trunk.vision
    assert isinstance(encoder, VisionEncoder)
    images = PixelInput(encoder)
    examples = questions(np.random.default_rng(0))
    copies = with_own_images(examples)

    def shared() -> Tensor:
        return ours(collate(examples, images)).logits

    def copied() -> Tensor:
        return ours(collate(copies, images)).logits

    def padded() -> Tensor:
        batch = collate(copies, images)
        assert batch.regions is not None
        return peer(batch, encoder(batch.pixels, batch.regions)[0])

    torch.testing.assert_close(shared(), copied(), rtol=1e-3, atol=1e-4)
    stored, whole = (replace(batch, pixels=None) for batch in (collate(e, images) for e in (examples, copies)))
    features = torch.rand(len(stored.regions), encoder.feature_size)  # type: ignore[arg-type]
    stored.regions = replace(stored.regions, features=features)  # type: ignore[type-var]
    rows = torch.from_numpy(np.concatenate([spec.region_rows for spec in stored.sequences]))
    runs = {
        "shared": shared,
        "copied": copied,
        "padded": padded,
        "stored": lambda: ours(stored).logits,
        "stored, padded": lambda: peer(whole, features[rows]),
    }
    seconds = in_turn(rounds, runs)
    figure = f"VCR questions with four choices, ResNet-{layers}, shorter side {short_side}"
    for mine, other, peer_name in (
        ("shared", "padded", "image and text encoded four times in full, padded (VisualBERT, the same ResNet)"),
        ("shared", "copied", "our network, four copies of each image"),
    ):
        report(figure, IMAGES / seconds[mine], "1/s", peer_name, IMAGES / seconds[other], more_is_better=True)
    figure, peer_name = "VCR questions with four choices, stored features", "four padded rows (VisualBERT)"
    ours_rate, peer_rate = (IMAGES / seconds[name] for name in ("stored", "stored, padded"))
    report(figure, ours_rate, "1/s", peer_name, peer_rate, more_is_better=True)


if __name__ == "__main__":
    if arguments(__doc__ or "", "a smaller ResNet, smaller images, one round").quick:
        measure(50, 160, 1)
    else:
        measure(101, 600, 3)
