"""What the benchmarks share: arguments, timing in turn, the line that each figure is printed as, and the samples."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import VisualBertConfig

from mmbert.data.packing import Example, regions_table
from mmbert.data.records import ImageRef
from mmbert.model.configuration import MMBertConfig
from mmbert.model.packed import RegionTable
from mmbert.vision.regions import Regions

VOCABULARY = 119_547
"""Words of the multilingual BERT tokenizer."""
FEATURES = 2048
"""Numbers per region, of a detector with a ResNet-101."""
CLASSES = 1601
"""The detector's classes, background included."""


def arguments(about: str, quick: str, *, devices: bool = False) -> argparse.Namespace:
    """The command line: ``--quick``.

    Args:
        about: the script's docstring.
        quick: what the short version does.
        devices: also ``--device`` and ``--samples`` (None: as the script has them).
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    if devices:
        parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda; default: cpu")
        parser.add_argument("--samples", type=int, default=None, help="of a batch; default: enough for a CPU")
    return parser.parse_args()


def in_turn(rounds: int, runs: dict[str, Callable[[], Any]], warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each run, by name.

    Every round calls each once, alternately forwards and backwards, so that whatever else the machine does
    meets all alike. The first ``warm_up`` rounds do not count. A run that returns a number has timed itself.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        names = list(runs) if number % 2 == 0 else list(runs)[::-1]
        for name in names:
            start = time.perf_counter()
            own = runs[name]()
            taken = own if isinstance(own, float) else time.perf_counter() - start
            if number >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(found) for name, found in times.items()}


def report(figure: str, value: float, unit: str, peer: str, peer_value: float, *, more_is_better: bool = False) -> None:
    """Print one figure; the ratio is how many times better ours is (null where that divides by zero)."""
    above, below = (value, peer_value) if more_is_better else (peer_value, value)
    ratio = round(above / below, 3) if below else None
    line = {"figure": figure, "value": round(value, 4), "unit": unit, "peer": peer}
    print(json.dumps(line | {"peer_value": round(peer_value, 4), "ratio": ratio}), flush=True)


def base_config(**changes: Any) -> MMBertConfig:
    """Ours at the size of BERT-base."""
    return MMBertConfig(vocab_size=VOCABULARY, region_feature_size=FEATURES, num_region_classes=CLASSES, **changes)


def peer_config() -> VisualBertConfig:
    """transformers' VisualBERT at the size of BERT-base, with the same vocabulary, features and dropout."""
    return VisualBertConfig(vocab_size=VOCABULARY, visual_embedding_dim=FEATURES)


class Features:
    """Region features that are there already, in the form that collation asks for.

    Args:
        regions: image name to its regions.
    """

    def __init__(self, regions: dict[str, Regions]) -> None:
        self.regions = regions

    def table(
        self, images: list[ImageRef], rng: np.random.Generator | None = None
    ) -> tuple[list[int], RegionTable, Tensor | None]:
        """First rows and base table of the images; no pixels."""
        return *regions_table([self.regions[image.key] for image in images]), None


def random_regions(rng: np.random.Generator, count: int, classes: int = 0) -> Regions:
    """The whole image and ``count - 1`` boxes in it, with features (and class distributions)."""
    corner = rng.uniform(0, 300, (count - 1, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 200, (count - 1, 2))], axis=1)
    features = rng.random((count - 1, FEATURES), dtype=np.float32)
    kinds = rng.dirichlet(np.full(classes, 0.01), count - 1).astype(np.float32) if classes else None
    return Regions.with_whole_image(boxes, features, (500, 500), kinds)


def image_text_samples(
    rng: np.random.Generator, tokens: list[int], regions: list[int], classes: int = 0
) -> tuple[list[Example], Features]:
    """Samples of so many tokens and regions (the whole image counted), each with an image of its own."""
    examples, found = [], {}
    for number, (length, count) in enumerate(zip(tokens, regions, strict=True)):
        image = ImageRef(path=f"{number}.jpg")
        found[image.key] = random_regions(rng, count, classes)
        examples.append(Example(random_tokens(rng, length), image=image))
    return examples, Features(found)


def random_tokens(rng: np.random.Generator, length: int) -> np.ndarray:
    """[length] ids above the special ones."""
    return rng.integers(1000, VOCABULARY, length)


def peer_batch(examples: list[Example], images: Features) -> dict[str, Tensor]:
    """The same samples padded to the longest, as VisualBERT takes them; texts get one region that is masked out."""
    longest = max(len(e.token_ids) for e in examples)
    found = [images.regions[e.image.key].features if e.image is not None else None for e in examples]
    most = max(1 if f is None else len(f) for f in found)
    batch = {
        "input_ids": torch.zeros(len(examples), longest, dtype=torch.long),
        "attention_mask": torch.zeros(len(examples), longest),
        "visual_embeds": torch.zeros(len(examples), most, FEATURES),
        "visual_attention_mask": torch.zeros(len(examples), most),
    }
    for row, (example, features) in enumerate(zip(examples, found, strict=True)):
        length = len(example.token_ids)
        batch["input_ids"][row, :length] = torch.from_numpy(example.token_ids)
        batch["attention_mask"][row, :length] = 1
        if features is not None:
            batch["visual_embeds"][row, : len(features)] = torch.from_numpy(features)
            batch["visual_attention_mask"][row, : len(features)] = 1
    return batch
