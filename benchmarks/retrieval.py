"""Does searching in two stages pay? 1,000 images of 36 regions and 1,000 captions of 16 tokens, base size, fp32.

Both directions are evaluated: `embed` encodes every image and every caption once, and for each caption and each image
the best 50 are matched, as `mmbert evaluate retrieval --mode rerank --rerank 50` does. The peers match all 1,000,000
pairs: `two_stage_retrieval` against transformers' VisualBERT with a linear head in batches of 50 captions of one image,
`two_stage_own` against our own matching of every pair, which packs and embeds each image's regions once. Ours is
measured in fp32 and in 8 bits (`two_stage_..._int8`, the two stages with `--int8` against every pair in fp32, and
`two_stage_own_both_int8` with both in 8 bits), where those are faster.

Matching is measured on a sample, and the time of a pair times the number of pairs is what is printed; so is embedding
(all of it with `--full`, which also matches all candidates of the two stages; the peers stay extrapolated). What the
best 50 are depends on the vectors: those of an untrained model say nothing, so vectors are drawn, each caption near its
image (R@1 about 75 %), and a pair that is among the best 50 both ways is matched once.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from _common import VOCABULARY, Features, base_config, peer_batch, peer_config, random_regions, report
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, VisualBertModel

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example
from mmbert.data.records import ImageRef, Record
from mmbert.evaluation.gallery import Gallery, build_gallery
from mmbert.evaluation.scorers import pair_logits, top
from mmbert.model.int8 import int8_is_faster
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.vision.regions import Regions

IMAGES, REGIONS, WORDS, BEST = 1000, 36, 14, 50
NOISE = 1.9
"""Of a caption's vector against its image's, both of 64 numbers: R@1 about 75 %."""


class StoredRegions(Features):
    """Regions that are there already, as a model without a vision encoder reads them."""

    def count(self, image: ImageRef) -> int:
        """Regions of an image."""
        return len(self.regions[image.key].features)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the vocabulary is one token: ``w1000`` has id 1000."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    vocabulary |= {f"w{i}": i for i in range(5, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def world(rng: np.random.Generator) -> tuple[Gallery, StoredRegions]:
    """Images with their regions, and a caption for each."""
    records, regions = [], dict[str, Regions]()
    for number in range(IMAGES):
        key = str(number)
        regions[key] = random_regions(rng, REGIONS)
        caption = " ".join(f"w{i}" for i in rng.integers(1000, VOCABULARY, WORDS))
        records.append(Record(id=key, image=ImageRef(data=b" ", key=key), captions={"en": (caption,)}))
    return build_gallery(records), StoredRegions(regions)


def candidates(rng: np.random.Generator) -> np.ndarray:
    """Sorted distinct pairs (image * captions + caption) among the best of either direction."""
    images = rng.standard_normal((IMAGES, 64))
    texts = images + NOISE * rng.standard_normal((IMAGES, 64))
    images, texts = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, texts))
    scores = texts @ images.T
    rows = np.arange(IMAGES)[:, None]
    return np.unique(
        np.concatenate([(top(scores, BEST) * IMAGES + rows).ravel(), (rows * IMAGES + top(scores.T, BEST)).ravel()])
    )


def clocked(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peer_pairs(
    gallery: Gallery, regions: StoredRegions, tokenizer: PreTrainedTokenizerFast, image: int, count: int
) -> Any:
    """One image with so many captions, as VisualBERT takes them."""
    ids: Sequence[Sequence[int]] = tokenizer(gallery.texts[:count])["input_ids"]
    return peer_batch([Example(np.asarray(one), image=gallery.images[image]) for one in ids], regions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples")
    parser.add_argument(
        "--full", action="store_true", help="embed everything and match all candidates (an hour or more)"
    )
    options = parser.parse_args()
    rounds, sample, embedded = (1, 100, 50) if options.quick else (3, 200, 200)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    gallery, regions = world(rng)
    pairs = candidates(rng)
    tokenizer = word_tokenizer()
    config = base_config(with_mlm_head=False, embedding_size=256)
    ours = MMBert(MMBertForPreTraining(config), MMBertProcessor(tokenizer, config))
    ours.processor.images = regions  # type: ignore[assignment]
    models = {"": ours}
    if int8_is_faster():
        models["_int8"] = MMBert(copy.deepcopy(ours.model), ours.processor)
        models["_int8"].use_int8()
    else:
        print("8 bits are not faster than fp32 on this processor: those figures left out", file=sys.stderr)
    peer, head = VisualBertModel(peer_config()).eval(), nn.Linear(768, 1).eval()

    def embed(model: MMBert, count: int) -> None:
        small = gallery.without_images(range(count))
        vectors = model.encode_images(small.images)
        model.encode_text(gallery.texts[:count])
        assert vectors.shape == (count, 256)

    def match(model: MMBert, keys: np.ndarray) -> None:
        assert pair_logits(model, gallery, np.sort(keys)).shape == keys.shape

    @torch.inference_mode()
    def match_peer(image: int) -> None:
        head(peer(**peer_pairs(gallery, regions, tokenizer, image, BEST)).pooler_output)

    times: dict[str, list[float]] = defaultdict(list)
    for model in models.values():
        match(model, pairs[:16])  # warm
    match_peer(0)
    for number in range(rounds):
        few = pairs[number * sample * 5 : number * sample * 5 + sample]
        every = np.arange(number * IMAGES, number * IMAGES + sample)
        for name, model in models.items():
            times[f"embed{name}"].append(clocked(lambda: embed(model, embedded)) / embedded)  # noqa: B023
            times[f"rerank{name}"].append(clocked(lambda: match(model, few)) / sample)  # noqa: B023
            times[f"own{name}"].append(clocked(lambda: match(model, every)) / sample)  # noqa: B023
        times["peer"].append(clocked(lambda: match_peer(number)) / BEST)  # noqa: B023
    each = {name: float(np.median(found)) for name, found in times.items()}
    if options.full:
        for name, model in models.items():
            each[f"embed{name}"] = clocked(lambda: embed(model, IMAGES)) / IMAGES  # noqa: B023
            each[f"rerank{name}"] = clocked(lambda: match(model, pairs)) / len(pairs)  # noqa: B023
    measured = {f"{name}_ms": round(1000 * value, 3) for name, value in each.items()}
    print(
        json.dumps({"measured": measured, "pairs": len(pairs), "of": IMAGES * IMAGES}),
        flush=True,
    )
    everything = f"VisualBERT, every pair (extrapolated from {rounds * BEST})"
    own = f"our matching of every pair (extrapolated from {rounds * sample})"
    for name in models:
        two_stages = each[f"embed{name}"] * IMAGES + each[f"rerank{name}"] * len(pairs)
        report(f"two_stage_retrieval{name}", two_stages, "s", everything, each["peer"] * IMAGES * IMAGES)
        report(f"two_stage_own{name}", two_stages, "s", own, each["own"] * IMAGES * IMAGES)
        if name:
            alike = f"{own}, 8 bits too"
            report("two_stage_own_both_int8", two_stages, "s", alike, each[f"own{name}"] * IMAGES * IMAGES)


if __name__ == "__main__":
    main()
