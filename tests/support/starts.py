"""Small text encoders in folders, and models that start from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from originals import SMALL, WORDS, write_vocabulary
from tiny import shake
from transformers import BertConfig, BertForPreTraining, PreTrainedModel

from mmbert import MMBert
from mmbert.training.build import build_model
from mmbert.training.initialisation import InitReport
from mmbert.training.recipe import ModelRecipe

SIZES: dict[str, Any] = {
    "hidden_size": SMALL.hidden, "num_hidden_layers": SMALL.layers, "num_attention_heads": SMALL.heads,
    "intermediate_size": SMALL.intermediate, "max_position_embeddings": SMALL.positions,
}  # fmt: skip
"""Those of the small checkpoints in ``originals``, for a configuration of transformers."""


def saved(model: PreTrainedModel, folder: Path, seed: int = 0, words: list[str] | None = None) -> Path:
    """A model with random weights (norms too) in a folder, with a vocabulary."""
    shake(model, seed)
    model.save_pretrained(folder)
    return write_vocabulary(folder, words)


def small_bert(folder: Path, words: list[str] | None = None) -> Path:
    """A folder with a small BERT that has every head."""
    config = BertConfig(vocab_size=len(words or WORDS), **SIZES)
    return saved(BertForPreTraining(config), folder, words=words)


def start(init: Any, report: InitReport | None = None, seed: int = 0, **model: Any) -> MMBert:
    """The model of a recipe's section ``model``."""
    return build_model(ModelRecipe.model_validate({"init": init, **model}), {}, seed, report)
