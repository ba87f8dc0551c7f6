"""Vocabulary surgery: new entries behind the old ones, whose ids, word vectors and biases stay bit by bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmbert.errors import ConfigError
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.training.recipe import TokenizerRecipe

VOCABULARY_TENSORS = ("trunk.embeddings.words.weight", "token_head.bias")
"""Tensors with a row for each entry."""


def extend_vocabulary(
    model: MMBertForPreTraining, tokenizer: PreTrainedTokenizerBase, recipe: TokenizerRecipe
) -> tuple[MMBertForPreTraining, PreTrainedTokenizerBase]:
    """Add the recipe's entries; what is there already is left alone.

    Args:
        model: a model.
        tokenizer: its tokenizer.
        recipe: ``add_special`` (rows start as a new model's) and ``add_pieces`` (rows start as the mean of the pieces
            that the entry was cut into before, where any of these is known).

    Returns:
        model and tokenizer, the same ones where nothing is added.

    Raises:
        ConfigError: a piece that the tokenizer could never use, or a tokenizer that takes none.
    """
    known = tokenizer.get_vocab()
    special = [token for token in dict.fromkeys(recipe.add_special) if token not in known]
    pieces = [piece for piece in dict.fromkeys(_pieces(recipe.add_pieces)) if piece not in known]
    if not special and not pieces:
        return model, tokenizer
    before = {piece: _known_ids(tokenizer, piece) for piece in pieces}
    if pieces:
        tokenizer = _with_pieces(tokenizer, pieces)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    rows = tokenizer.get_vocab()
    model = _resized(model, max(model.config.vocab_size, len(tokenizer)))
    state = model.state_dict()
    with torch.no_grad():
        for piece, ids in before.items():
            for name in VOCABULARY_TENSORS:
                if ids and name in state:
                    state[name][rows[piece]] = state[name][torch.tensor(ids)].mean(0)
    return model, tokenizer


def _pieces(given: Sequence[str] | str) -> list[str]:
    if not isinstance(given, str):
        return list(given)
    try:
        lines = Path(given).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the pieces to add", where=given) from error
    return [line.strip() for line in lines if line.strip()]


def _plain(piece: str) -> str:
    """The text that a piece stands for."""
    return piece.removeprefix("##").removeprefix("▁")


def _known_ids(tokenizer: PreTrainedTokenizerBase, piece: str) -> list[int]:
    ids = tokenizer(_plain(piece), add_special_tokens=False)["input_ids"]
    return [i for i in ids if i != tokenizer.unk_token_id]


def _with_pieces(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> PreTrainedTokenizerBase:
    """The same tokenizer with further entries in its own model."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    inner, first = content["model"], len(tokenizer)
    if inner.get("type") == "WordPiece":
        inner["vocab"] |= {piece: first + i for i, piece in enumerate(pieces)}
    elif inner.get("type") == "Unigram" and len(inner["vocab"]) == first:
        # As likely as the others on average: pieces of two or more old ones then win, single characters do not.
        score = sum(s for _, s in inner["vocab"]) / first
        inner["vocab"] += [[piece, score] for piece in pieces]
    else:
        raise ConfigError("add_pieces: only tokenizers of word pieces or unigrams take further pieces")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special)
    for piece in pieces:
        if not piece.startswith("##") and piece not in made.tokenize(_plain(piece)):
            raise ConfigError(
                f"add_pieces: {piece!r} would never be used",
                hint="the tokenizer cuts or changes it: does it lower-case, or does the piece hold a blank?",
            )
    return made


def _resized(model: MMBertForPreTraining, rows: int) -> MMBertForPreTraining:
    """The model with so many word rows; the new ones as a new model has them."""
    if rows == model.config.vocab_size:
        return model
    config = copy.deepcopy(model.config)
    config.vocab_size = rows
    larger = type(model)(config)
    old, new = model.state_dict(), larger.state_dict()
    with torch.no_grad():
        for name, tensor in new.items():
            _first_rows(tensor, old[name]).copy_(old[name])
    return larger


def _first_rows(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if tensor.shape == like.shape else tensor[: len(like)]
