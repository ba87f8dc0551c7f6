"""How many pairs of image and text are judged per second, against transformers' VisualBERT with a linear head?

BERT-base size, fp32, batches of 16 pairs, regions embedded from 2,048 numbers each. `match_equal`: 37 regions and 24
tokens in every pair. `match_mixed`: 6 to 40 tokens and 10 to 100 regions; VisualBERT pads each batch to its longest
text and its longest image, ours packs. `..._int8`: ours in 8 bits, where those are faster.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from _common import arguments, base_config, image_text_samples, in_turn, peer_batch, peer_config, report
from torch import nn
from transformers import VisualBertModel

from mmbert.data.packing import Example, collate
from mmbert.model.int8 import int8_is_faster
from mmbert.model.modeling import MMBertForPreTraining

PEER = "transformers VisualBertModel + linear"
BATCH = 16


def main() -> None:
    quick = arguments(__doc__, "one batch of mixed lengths and fewer rounds").quick
    rounds, batches = (2, 1) if quick else (7, 3)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ours = MMBertForPreTraining(base_config(with_mlm_head=False)).eval()
    models = {"": ours}
    if int8_is_faster():
        models["_int8"] = copy.deepcopy(ours)
        models["_int8"].use_int8()
    peer, head = VisualBertModel(peer_config()).eval(), nn.Linear(768, 1).eval()

    def compare(figure: str, groups: list[tuple[list[Example], object]]) -> None:
        packed = [collate(examples, images) for examples, images in groups]
        padded = [peer_batch(examples, images) for examples, images in groups]

        @torch.inference_mode()
        def run_ours(model: MMBertForPreTraining) -> None:
            for batch in packed:
                model.match_logits(model(batch, positions=batch.starts).pooled)  # as MMBert.match does

        @torch.inference_mode()
        def run_peer() -> None:
            for inputs in padded:
                head(peer(**inputs).pooler_output)

        turns = {name: lambda model=model: run_ours(model) for name, model in models.items()}
        median = in_turn(rounds, {**turns, "peer": run_peer})
        rate = {name: BATCH * len(groups) / seconds for name, seconds in median.items()}
        for name in models:
            report(figure + name, rate[name], "pairs/s", PEER, rate["peer"], more_is_better=True)

    compare("match_equal", [image_text_samples(rng, [24] * BATCH, [37] * BATCH)])
    mixed = [
        image_text_samples(rng, rng.integers(6, 41, BATCH).tolist(), rng.integers(10, 101, BATCH).tolist())
        for _ in range(batches)
    ]
    compare("match_mixed", mixed)


if __name__ == "__main__":
    main()
