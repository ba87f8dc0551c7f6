"""Weights that training can start from, whoever wrote them: one of our folders, a ``.model`` file, a text encoder.

Out comes :class:`Weights`: tensors by our names, and what the file holds besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmbert.api.loading import SHIPPED, find_model
from mmbert.compat.checkpoints import read_checkpoint
from mmbert.compat.configs import plan_from_tensors
from mmbert.compat.encoders import encoder_kind, read_encoder
from mmbert.compat.keys import Rule
from mmbert.compat.vocabularies import open_tokenizer
from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.configuration import MMBertConfig

SIZES = (
    "vocab_size hidden_size num_hidden_layers intermediate_size max_position_embeddings type_vocab_size visual_size "
    "visual_ln region_feature_size word_embedding_frozen num_special_words text_only_visual text_only_visual_size "
    "region_mask_feature object_mask_word_embedding num_region_classes"
).split()
"""Keys of our configuration that the tensors of a VL-BERT checkpoint decide."""


@dataclass
class Weights:
    """Tensors to start from.

    Attributes:
        origin: path or id, as given.
        tensors: our name to tensor, on the CPU.
        names: our name to the names in the file.
        unknown: names in the file that mean nothing to our networks.
        sizes: the keys of our configuration that they decide.
        guesses: further keys, as the published networks have them; whatever else says them is right.
        tokenizer: the tokenizer beside them, if there is one.
    """

    origin: str
    tensors: dict[str, Tensor]
    names: dict[str, tuple[str, ...]]
    unknown: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    guesses: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None


def open_weights(name: str, rules: Iterable[Rule]) -> Weights:
    """Read weights.

    Args:
        name: a ``.model`` file, one of our model folders, a text encoder's folder, or a hub id.
        rules: our names to VL-BERT's (``compat.keys``), task heads included.

    Raises:
        CheckpointError: there is nothing, it is damaged, or of a kind that is not known.
    """
    path = Path(name)
    if path.is_file():
        return _from_checkpoint(path, rules)
    if path.suffix == ".model":
        raise CheckpointError("no such checkpoint", where=name, hint="give the .model file of VL-BERT or MM-BERT")
    kind = "mmbert" if name in SHIPPED else encoder_kind(name)
    return _from_folder(find_model(name), name) if kind in (None, "mmbert") else _from_encoder(name, rules)


def _from_checkpoint(path: Path, rules: Iterable[Rule]) -> Weights:
    read = read_checkpoint(path)
    tensors, names, unknown = to_ours(rules, read.tensors)
    if not tensors:
        raise CheckpointError("no tensor of VL-BERT's networks in it", where=str(path))
    try:
        config = plan_from_tensors(read.shapes, "pretraining").config
    except ConfigError:  # without sizes: the recipe has to say them
        return Weights(str(path), tensors, names, unknown)
    sizes = {key: getattr(config, key) for key in SIZES}
    if config.match_outputs:  # without such a head, whether to have one is the recipe's business
        sizes["match_outputs"] = config.match_outputs
    guesses = {"num_attention_heads": config.num_attention_heads}  # 64 wide each: no tensor tells
    return Weights(str(path), tensors, names, unknown, sizes, guesses)


def _from_encoder(name: str, rules: Iterable[Rule]) -> Weights:
    read = read_encoder(name)
    theirs = {read.names[key]: value for key, value in read.tensors.items() if key in read.names}
    in_file = {new: key for key, new in read.names.items()}
    tensors, names, unknown = to_ours(rules, theirs)
    left = [*(k for k in read.tensors if k not in read.names), *(in_file[n] for n in unknown), *read.unread]
    named = {ours: tuple(in_file[n] for n in parts) for ours, parts in names.items()}
    return Weights(name, tensors, named, left, read.sizes, tokenizer=open_tokenizer(name))


def _from_folder(folder: Path, name: str) -> Weights:
    file = folder / "model.safetensors"
    try:
        config = MMBertConfig.from_pretrained(folder)
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        message = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot read the weights: {message[0] if message else type(error).__name__}", where=str(file)
        ) from error
    sizes = {key: getattr(config, key) for key in MMBertConfig.__annotations__}
    names: dict[str, tuple[str, ...]] = {key: (key,) for key in tensors}
    return Weights(name, tensors, names, sizes=sizes, tokenizer=open_tokenizer(str(folder)))


def to_ours(
    rules: Iterable[Rule], theirs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], list[str]]:
    """Tensors under VL-BERT's canonical names, by our names.

    Returns:
        ours, the names that each was made of, and theirs that no rule is about (or of which a part is missing).
    """
    tensors: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    for rule in rules:
        backwards = Rule(rule.theirs[0], (rule.ours, *rule.theirs))
        for key in theirs:
            found = backwards.names(key)
            if found is None or any(part not in theirs for part in found[1:]):
                continue
            ours, *parts = found
            try:
                tensors[ours] = rule.to_ours([theirs[part] for part in parts])
            except ValueError as error:
                raise CheckpointError(f"{parts[0]} {error}") from error
            names[ours] = tuple(parts)
            used.update(parts)
    return tensors, names, [key for key in theirs if key not in used]
