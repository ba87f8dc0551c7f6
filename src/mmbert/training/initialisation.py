"""Where a model's weights start: parts of other models put together, heads made of pre-training heads.

In: the recipe's ``model.init`` (:class:`~mmbert.training.recipe.InitRecipe`) and a fresh model. Out: the model filled,
and a report in which every tensor of every part is either used or left, and every tensor of ours has a source or is
fresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmbert.compat.keys import rules_for
from mmbert.compat.weights import Weights, open_weights
from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.training.head_starts import copy_tensor, start_head
from mmbert.training.recipe import InitRecipe

WORDS, SPECIAL_WORDS = "trunk.embeddings.words.weight", "trunk.embeddings.special_words.weight"
SEGMENTS = "trunk.embeddings.segments.weight"
VOCABULARY = (WORDS, SPECIAL_WORDS, "token_head.bias")
"""What mode ``skip`` leaves out: the decoder is the word table itself."""
VISION = (
    "region_head.",
    "trunk.vision.",
    "trunk.region_embedding.projection.",
    "trunk.embeddings.text_visual.norm.",
    "trunk.embeddings.object_visual.norm.",
    "trunk.embeddings.region_word",
    "trunk.embeddings.masked_region_word",
    "trunk.embeddings.end_word",
    "trunk.embeddings.text_only_visual",
    "trunk.embeddings.positions.",
    "trunk.embeddings.segments.",
)
"""What mode ``hybrid`` takes."""
VISION_SIZES = (
    "visual_size visual_ln region_feature_size num_region_classes region_mask_feature object_mask_word_embedding "
    "text_only_visual text_only_visual_size max_position_embeddings type_vocab_size vision"
).split()
"""Keys of the configuration that go with them."""


@dataclass
class InitReport:
    """What became of every tensor.

    Attributes:
        used: origin to the names in its file that the model started from.
        left: origin to the names in its file that it did not.
        fresh: our tensors that were made at random.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def add_backbone(self, origin: str, loaded: dict[str, str], left: list[str]) -> None:
        """Note the vision encoder's own checkpoint, of which that counts as used which no part has overwritten.

        Args:
            origin: its file, as given.
            loaded: the encoder's name of each tensor to its name in the file.
            left: names in the file of the others.
        """
        used = {name: key for name, key in loaded.items() if f"trunk.vision.{name}" in self.fresh}
        self.used[origin] = sorted(used.values())
        self.left[origin] = sorted([*left, *(key for name, key in loaded.items() if name not in used)])
        self.fresh = [name for name in self.fresh if name.removeprefix("trunk.vision.") not in used]

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def takes(mode: str, name: str) -> bool:
    """Whether a mode takes the tensor that we call ``name`` from the recipe's ``model``."""
    if mode == "skip":
        return name not in VOCABULARY
    return mode == "plain" or name.startswith(VISION)


class Parts:
    """The weights that a recipe names, opened.

    Args:
        recipe: ``model.init``.
        config: the recipe's own ``model.config``: it says which task heads there are.

    Raises:
        CheckpointError: one of them cannot be read.
    """

    def __init__(self, recipe: InitRecipe, config: dict[str, Any]) -> None:
        self.recipe = recipe
        rules = rules_for(MMBertConfig(heads=config.get("heads"), vision=config.get("vision")))
        self.text = open_weights(recipe.text, rules) if recipe.text is not None else None
        self.models = [open_weights(name, rules) for name in recipe.models]

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """Keys of the configuration as the parts have them."""
        sizes: dict[str, Any] = {}
        for part in self._all():
            sizes |= part.guesses
        sizes |= self.text.sizes if self.text is not None else {}
        for weights in self.models:
            found = weights.sizes
            if self.recipe.mode == "hybrid":
                found = {key: value for key, value in found.items() if key in VISION_SIZES}
            elif self.recipe.mode == "skip":
                found = {key: value for key, value in found.items() if key != "vocab_size"}
            sizes |= found
        return sizes

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that belongs to the word vectors."""
        if self.recipe.mode == "plain":
            for weights in reversed(self.models):
                if weights.tokenizer is not None and WORDS in weights.tensors:
                    return weights.tokenizer
        return self.text.tokenizer if self.text is not None else None

    def sources(self) -> dict[str, Weights]:
        """Our name to the part that it comes from; the last that has it wins."""
        chosen = dict.fromkeys(self.text.tensors, self.text) if self.text is not None else {}
        for weights in self.models:
            chosen |= {name: weights for name in weights.tensors if takes(self.recipe.mode, name)}
        return chosen

    @torch.no_grad()
    def fill(self, model: MMBertForPreTraining, tokenizer: PreTrainedTokenizerBase) -> InitReport:
        """Copy the parts into a fresh model.

        Args:
            model: the model.
            tokenizer: its tokenizer, for heads that start from words.

        Raises:
            CheckpointError: a tensor is of another shape, or nothing of a part has a place in the model.
            ConfigError: a head that the model has not, or that cannot start so.
        """
        state = model.state_dict()
        used: dict[str, set[str]] = {part.origin: set() for part in self._all()}
        filled: set[str] = set()
        for name, part in self.sources().items():
            if name in state:
                _put(state[name], name, part)
                used[part.origin].update(part.names[name])
                filled.add(name)
        for name, start in self.recipe.heads.items():
            filled |= start_head(model, name, start, tokenizer, self._find, used)
        if SPECIAL_WORDS in state and SPECIAL_WORDS not in filled and WORDS in filled:
            rows = min(len(state[SPECIAL_WORDS]), len(state[WORDS]))
            state[SPECIAL_WORDS][:rows] = state[WORDS][:rows]
            filled.add(SPECIAL_WORDS)
        self._copy_segments(state[SEGMENTS])
        for part in self._all():
            if not used[part.origin] and not state.keys() & part.tensors.keys():
                raise CheckpointError("nothing of it has a place in the model", where=part.origin)
        fresh = sorted(set(state) - filled)
        given = len(self.sources()[SEGMENTS].tensors[SEGMENTS]) if SEGMENTS in filled else 1
        if 1 < given < len(state[SEGMENTS]):
            fresh.append(f"{SEGMENTS}[{given}:]")
        return InitReport(
            {origin: sorted(names) for origin, names in used.items()},
            {part.origin: sorted(_held(part) - used[part.origin]) for part in self._all()},
            fresh,
        )

    def _all(self) -> Iterator[Weights]:
        if self.text is not None:
            yield self.text
        yield from self.models

    def _find(self, name: str) -> Weights:
        """The last part that has a tensor, whatever the mode takes."""
        for part in (*reversed(self.models), self.text):
            if part is not None and name in part.tensors:
                return part
        raise ConfigError(f"model.init: no part has {name}", hint="a head can only start from one that is there")

    def _copy_segments(self, segments: Tensor) -> None:
        before = segments.clone()
        for row, source in self.recipe.segments.items():
            if not (0 <= row < len(before) and 0 <= source < len(before)):
                raise ConfigError(f"model.init.segments: the model has rows 0 to {len(before) - 1}")
            segments[row] = before[source]


def _held(part: Weights) -> set[str]:
    return {*part.unknown, *(name for names in part.names.values() for name in names)}


def _put(target: Tensor, name: str, part: Weights) -> None:
    tensor = part.tensors[name]
    if name == SEGMENTS and tensor.dim() == 2 and len(tensor) < len(target):
        # BERT has two rows, for texts; RoBERTa's only one stands for all.
        target = target if len(tensor) == 1 else target[: len(tensor)]
        tensor = tensor.expand(len(target), -1)
    other = "another vocabulary: mode: skip leaves the word vectors of model out" if name in VOCABULARY else None
    copy_tensor(target, tensor, name, part, other)
