"""Does the time per position stay the same, however many positions a batch has?

A stream of text batches of 1,000, 4,000, 16,000 and 64,000 packed positions, in sequences of 16 to 140, through a trunk
of middle size (hidden 256, 4 layers): forward (`packed_linear`), and forward with backward (`packed_linear_train`).
Every size gets the same 64,000 positions per round. The value is the time per position of the worst size over that of
the best: 1 is exactly linear. The times of each size come before it, each against the best.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from _common import arguments, in_turn, report

from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertModel
from mmbert.model.packed import PackedBatch, SequenceSpec, pack

SIZES = (1_000, 4_000, 16_000, 64_000)
SHORTEST, LONGEST = 16, 140
WORDS = 20_000


def stream(rng: np.random.Generator, positions: int, size: int) -> list[PackedBatch]:
    """Batches of ``size`` positions, ``positions`` in all."""
    return [pack(_sequences(rng, size)) for _ in range(positions // size)]


def _sequences(rng: np.random.Generator, total: int) -> list[SequenceSpec]:
    lengths: list[int] = []
    while (rest := total - sum(lengths)) > LONGEST + SHORTEST:
        lengths.append(int(rng.integers(SHORTEST, LONGEST + 1)))
    lengths += [rest // 2, rest - rest // 2]
    return [SequenceSpec(rng.integers(1000, WORDS, n - 1)) for n in lengths]  # and [END]


def main() -> None:
    quick = arguments(__doc__, "a quarter of the positions (and no batch of 64,000), fewer rounds").quick
    rounds, positions = (2, 16_000) if quick else (5, 64_000)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = MMBertModel(
        MMBertConfig(
            vocab_size=WORDS, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
            visual_size=256, region_feature_size=64, coordinate_frequencies=8, with_pooler=False, match_outputs=0,
        )
    )  # fmt: skip
    streams = {size: stream(rng, positions, size) for size in SIZES if size <= positions}

    @torch.inference_mode()
    def forward(batches: list[PackedBatch]) -> None:
        for batch in batches:
            model(batch)

    def train(batches: list[PackedBatch]) -> None:
        for batch in batches:
            model(batch).last_hidden_state.square().mean().backward()
            model.zero_grad()

    for figure, run in [("packed_linear", forward), ("packed_linear_train", train)]:
        model.train(run is train)
        median = in_turn(rounds, {str(size): partial(run, batches) for size, batches in streams.items()})
        each = {size: seconds / positions * 1e6 for size, seconds in median.items()}
        best, worst = min(each.values()), max(each.values())
        for size, value in each.items():
            report(f"{figure}_{size}", value, "us/position", "the best size", best)
        report(figure, worst / best, "worst/best", "exactly linear", 1.0)


if __name__ == "__main__":
    main()
