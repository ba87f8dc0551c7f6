"""A real model, small enough to be made while testing."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights: one layer, width 16, vectors of 8 numbers."""
    import torch

    from mmbert import MMBert, MMBertConfig, MMBertForPreTraining, MMBertProcessor
    from mmbert.text.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["ein Elefant im Schnee", "un éléphant"] * 5, vocab_size=60)
    config = MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        visual_size=16,
        region_feature_size=64,
        coordinate_frequencies=2,
        num_region_classes=0,
        embedding_size=8,
        vision={"kind": "grid", "backbone": "test_vit", "image_size": 160},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same weights in every session
        model = MMBertForPreTraining(config)
    folder = tmp_path_factory.mktemp("model")
    MMBert(model, MMBertProcessor(tokenizer, config, model.trunk.vision)).save_pretrained(folder)
    return folder
