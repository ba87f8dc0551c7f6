"""An exported model beside the one it was made of: how far apart their results are, and how long each takes.

Both do the same passes over real inputs: images and captions of the shipped corpus (for a model of stored regions,
captions and regions drawn at random).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from mmbert.api.front_door import MMBert
from mmbert.api.runtimes import Array
from mmbert.data.packing import collate, regions_table
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.model.packed import PackedBatch, SequenceSpec, pack, paired
from mmbert.vision.regions import Regions

SAMPLES = "starter:validation"
IMAGES, CAPTIONS = 16, 4
"""Images, and captions that each is matched with."""
ROUNDS = 5
Make = Callable[[int], MMBert]


class Probe:
    """The work that models are compared by.

    Args:
        bert: tokenizes and embeds regions.
    """

    def __init__(self, bert: MMBert) -> None:
        source = open_data(SAMPLES)
        records = [source[i] for i in np.linspace(0, len(source) - 1, IMAGES).astype(int)]
        examples = bert.processor.text_examples([said for record in records for said in _captions(record)])
        examples.sort(key=lambda example: len(example.token_ids))
        self.texts = collate(examples)
        with torch.inference_mode():
            self.images = _images(bert, records)
            self.vectors = bert._embed_regions(self.images)
        texts, images = self.texts.sequences, self.images.sequences
        self.pairs: list[SequenceSpec] = [paired(text, images[i % len(images)]) for i, text in enumerate(texts)]

    def run(self, model: MMBert, name: str) -> Array:
        """One pass of the graph ``name``, by a model of either kind."""
        with torch.inference_mode():
            if name == "text":
                return model._embed_texts(self.texts).numpy()
            if name == "regions":
                return model._embed_regions(self.images).numpy()
            if name == "image":
                return model._embed_seen(self.images, self.vectors).numpy()
            return model._match(self.pairs, self.vectors)

    def results(
        self, bert: MMBert, exported: Mapping[str, MMBert], names: Sequence[str]
    ) -> dict[str, dict[str, Array]]:
        """Result of each graph, by model (``pytorch`` and the exported ones)."""
        return {
            kind: {name: self.run(model, name) for name in names}
            for kind, model in {"pytorch": bert, **exported}.items()
        }

    def seconds(
        self, bert: MMBert, exported: Mapping[str, Make], names: Sequence[str], threads: int
    ) -> dict[str, dict[str, float]]:
        """By graph and model, the least time of a pass with so many threads; other work on the machine only adds to it.

        Every round has each model once, alternately forwards and backwards; the first round does not count. With one
        thread it is the processor's time, which other work hardly touches.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            models = {"pytorch": bert, **{kind: make(threads) for kind, make in exported.items()}}
            clock = time.process_time if threads == 1 else time.perf_counter
            return {name: self._seconds(models, name, clock) for name in names}
        finally:
            torch.set_num_threads(before)

    def _seconds(self, models: Mapping[str, MMBert], name: str, clock: Callable[[], float]) -> dict[str, float]:
        times: dict[str, list[float]] = {kind: [] for kind in models}
        for number in range(1 + ROUNDS):
            for kind in list(models)[:: 1 if number % 2 else -1]:
                start = clock()
                self.run(models[kind], name)
                times[kind].append(clock() - start)
        return {kind: round(min(found[1:]), 6) for kind, found in times.items()}


def distances(expected: Array, found: Array) -> dict[str, float]:
    """How far results are from those expected.

    Args:
        expected, found: [n, D] vectors or [n] logits.

    Returns:
        ``max_abs``: greatest difference; ``relative``: the same, by the greatest expected value (at least 1);
        ``agreement``: least cosine of two vectors, or the correlation of the logits.
    """
    off = float(np.abs(expected - found).max())
    if expected.ndim == 1:
        agreement = float(np.corrcoef(expected, found)[0, 1])
    else:
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        agreement = float(((expected * found).sum(1) / np.maximum(lengths, 1e-12)).min())
    scale = max(1.0, float(np.abs(expected).max()))
    return {"max_abs": off, "relative": off / scale, "agreement": round(agreement, 6)}


def _captions(record: Record) -> list[str]:
    """Captions in different languages."""
    said = [captions[0] for captions in record.captions.values() if captions]
    return [said[i % len(said)] for i in range(CAPTIONS)]


def _images(bert: MMBert, records: Sequence[Record]) -> PackedBatch:
    if bert.model.trunk.vision is not None:
        batch: PackedBatch = bert._image_batch([record.image for record in records])
        return batch
    rng = np.random.default_rng(0)
    made = []
    for _ in records:
        corners = np.sort(rng.uniform(0, 400, (int(rng.integers(2, 30)), 2, 2)), axis=1).reshape(-1, 4)
        features = rng.standard_normal((len(corners), bert.config.region_feature_size))
        made.append(Regions.with_whole_image(corners, features.astype(np.float32), (400, 400)))
    first, table = regions_table(made)
    ids = bert.processor.image_ids()
    specs = [SequenceSpec(ids, 0, a, np.arange(a, b)) for a, b in pairwise(first)]
    return pack(specs, regions=table)
