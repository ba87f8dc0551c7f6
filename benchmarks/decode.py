"""Does writing with a cache pay? 8 sources of 16 tokens with 36 regions, 24 tokens written greedily, base size, fp32.

Ours writes behind the packed sequences with the trunk itself (prefix language model) and a cache of keys and values.
`decode_vs_reencoding`: against the published way on the same weights, which reads source, regions and what is written
so far again for each token, and computes words at every text position of all eight texts (regions are embedded once, as
ours does). `decode_vs_masked`: the same with words at the `[MASK]` alone, as `generate_at_mask` does by itself.
`decode_vs_generate`: against transformers'
`generate` on an encoder-decoder of two BERTs of the same size, whose source is as long as ours with its regions.
`decode_int8_vs_...`: ours in 8 bits (`--int8`) against the same, which stay in fp32, and
`decode_int8_vs_reencoding_int8` against the published way in 8 bits; left out where 8 bits are not faster. Every way
writes all 24 tokens of every text. Our ways run with packed weights, as `mmbert translate` does, which packs them once
for all texts; how long that takes comes first (`decode_packing`, against the time of a round).
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import VOCABULARY, Features, arguments, base_config, in_turn, random_regions, report
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from mmbert.data.packing import Example, collate
from mmbert.data.records import ImageRef
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.int8 import int8_is_faster
from mmbert.model.linear import PackedWeights
from mmbert.model.masked_generation import generate_at_mask
from mmbert.model.packed import PackedBatch, SequenceSpec, pack

SOURCES, TOKENS, REGIONS, WRITTEN = 8, 16, 36, 24
START = 200


def batch_of(rng: np.random.Generator) -> PackedBatch:
    """The sources with their regions, each with the first token of its text."""
    names = [str(i) for i in range(SOURCES)]
    images = Features({name: random_regions(rng, REGIONS) for name in names})
    return collate(
        [
            Example(
                rng.integers(1000, VOCABULARY, TOKENS), image=ImageRef(data=b" ", key=name), written=np.array([START])
            )
            for name in names
        ],
        images,  # type: ignore[arg-type]
    )


def ways(layers: int) -> dict[str, Callable[[], Any]]:
    """The ways of writing, by name."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    config = base_config(num_hidden_layers=layers, match_outputs=0, with_pooler=False)
    ours = MMBertForConditionalGeneration(config).eval()
    batch = batch_of(rng)
    bert = {"vocab_size": VOCABULARY, "num_hidden_layers": layers}
    both = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**bert), BertConfig(**bert))
    peer = EncoderDecoderModel(both).eval()
    source = torch.from_numpy(rng.integers(1000, VOCABULARY, (SOURCES, batch.lengths[0])))

    def cached(model: MMBertForConditionalGeneration) -> None:
        written = model.generate_text(batch, max_new_tokens=WRITTEN, eos_token_id=None)
        assert written.shape == (SOURCES, 1 + WRITTEN)

    asked = {"mask_id": 103, "sep_id": 102, "stop_id": -1, "max_steps": WRITTEN}

    def masked() -> None:
        written = generate_at_mask(ours, batch.sequences, regions=batch.regions, **asked)
        assert written.ids.shape == (SOURCES, WRITTEN)

    @torch.inference_mode()
    def reencoding(model: MMBertForConditionalGeneration) -> None:
        regions, vectors = model.trunk.embed_regions(batch)

        def read(specs: list[SequenceSpec], offsets: list[int], _: list[int]) -> torch.Tensor:
            whole = pack(specs, regions=regions)
            states = model.trunk(whole, region_vectors=vectors).last_hidden_state
            lengths = [len(spec.token_ids) for spec in specs]
            texts = [start + np.arange(n) for start, n in zip(whole.starts.tolist(), lengths, strict=True)]
            words = model.token_logits(states.index_select(0, torch.from_numpy(np.concatenate(texts))))
            firsts = np.cumsum([0, *lengths[:-1]])
            return words.index_select(0, torch.from_numpy(firsts + np.array(offsets)))

        written = generate_at_mask(model, batch.sequences, read=read, **asked)
        assert written.ids.shape == (SOURCES, WRITTEN)

    @torch.inference_mode()
    def generate() -> None:
        written = peer.generate(
            source, decoder_start_token_id=101, pad_token_id=0, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN,
            do_sample=False,
        )  # fmt: skip
        assert written.shape == (SOURCES, 1 + WRITTEN)

    found = {
        "cached": lambda: cached(ours),
        "reencoding": lambda: reencoding(ours),
        "masked": masked,
        "generate": generate,
    }
    if int8_is_faster():
        in_8_bits = copy.deepcopy(ours)
        in_8_bits.use_int8()
        found |= {"cached_int8": lambda: cached(in_8_bits), "reencoding_int8": lambda: reencoding(in_8_bits)}
    return found


def main() -> None:
    options = arguments(__doc__, "one round instead of three, and two of the twelve layers")
    tried = ways(2 if options.quick else 12)
    tried["cached"]()
    with PackedWeights().used():
        start = time.perf_counter()
        tried["cached"]()
        first = time.perf_counter() - start
        times = in_turn(1 if options.quick else 3, tried, warm_up=0 if options.quick else 1)
    report("decode_packing", first - times["cached"], "s, once", "one round of 8 texts, packed", times["cached"])
    names = {
        "reencoding": "published re-encoding loop",
        "masked": "re-encoding loop, words at [MASK] alone",
        "generate": "transformers generate, BERT encoder-decoder",
    }
    each = {way: seconds / SOURCES * 1000 for way, seconds in times.items()}
    for peer, name in names.items():
        report(f"decode_vs_{peer}", each["cached"], "ms per text", name, each[peer])
    if "cached_int8" not in each:
        print("8 bits are not faster than fp32 on this processor: decode_int8 left out", file=sys.stderr)
        return
    names["reencoding_int8"] = "published re-encoding loop, 8 bits too"
    for peer, name in names.items():
        report(f"decode_int8_vs_{peer}", each["cached_int8"], "ms per text", name, each[peer])


if __name__ == "__main__":
    main()
