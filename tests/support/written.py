"""Models that write, small enough to be made while testing."""

from __future__ import annotations

from typing import Any

from tiny import shake, tiny_config
from tokenizers import normalizers

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.model.modeling import MMBertForPreTraining, build_vision
from mmbert.text.tokenizer import train_tokenizer

TEXTS = ["a red dog", "the ball", "two dogs and a cat in the snow"]
SEEING: dict[str, Any] = {"kind": "grid", "backbone": "test_vit", "image_size": 64}
"""Options of a vision encoder."""


def masked_writer(
    *, vision: dict[str, Any] | None = SEEING, seed: int = 2, accents: bool = True, positions: int = 64
) -> MMBert:
    """A model with random weights that writes at ``[MASK]``; without ``accents`` its tokenizer strips them."""
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=200)
    tokenizer.add_tokens(["[STOP]"], special_tokens=True)
    if not accents:
        tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    return _made(tokenizer, vision, seed, max_position_embeddings=positions)


def writing_model(*, decoder_layers: int = 0, vision: dict[str, Any] | None = SEEING, seed: int = 2) -> MMBert:
    """A model with random weights that writes German and English; ``vision`` None: it reads no images."""
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=200)
    tokenizer.add_tokens(["[2de]", "[2en]"], special_tokens=True)
    return _made(tokenizer, vision, seed, num_decoder_layers=decoder_layers)


def _made(tokenizer: Any, vision: dict[str, Any] | None, seed: int, **sizes: Any) -> MMBert:
    seen = {} if vision is None else {"vision": vision, "region_feature_size": build_vision(vision).feature_size}
    config = tiny_config(vocab_size=len(tokenizer), num_region_classes=0, **seen, **sizes)
    network = MMBertForPreTraining(config)
    shake(network, seed)
    return MMBert(network, MMBertProcessor(tokenizer, config, network.trunk.vision))
