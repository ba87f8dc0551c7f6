"""Optimisers and schedules: which parameters learn, at which rate, by which rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mmbert.errors import ConfigError
from mmbert.training.recipe import OptimizerRecipe

NO_DECAY_NAMES = ("bias", "norm", "scale")
WORDS = "embeddings.words.weight"
TABLE_NAMES = (WORDS, ".table")
TABLES = ("table", "words")
"""Parts that are tables; ``words`` where layer-wise decay makes a difference between the word table and others."""
_LAYER = re.compile(r"\.encoder\.layers\.(\d+)\.")


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Take the gradient from parameters by name.

    Args:
        model: whose parameter names are meant.
        patterns: as in file names (``trunk.encoder.layers.0.*``).

    Raises:
        ConfigError: a pattern fits no parameter.
    """
    for pattern in patterns:
        found = [parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(
                f"optimizer.frozen: no parameter is called {pattern!r}",
                hint=f"names look like {next(name for name, _ in model.named_parameters())!r}; * stands for anything",
            )
        for parameter in found:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Trainable parameters by rate (vision, tables, layers, the rest) and by whether they decay.

    Each group has a ``name`` for the log; ``hidden`` says that its matrices lie between hidden states (Muon's).
    """
    layers = [int(m[1]) for name, _ in model.named_parameters() if (m := _LAYER.search(name))]
    depth = max(layers, default=-1) + 1
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = _part(name, recipe)
            decayed = parameter.dim() > 1 and part not in TABLES and not any(p in name for p in NO_DECAY_NAMES)
            hidden = recipe.name == "muon" and parameter.dim() == 2 and _LAYER.search(name) is not None
            groups.setdefault((part, decayed, hidden), []).append(parameter)
    found = []
    for (part, decayed, hidden), parameters in groups.items():
        name = part + ("" if decayed else "-plain") + ("-hidden" if hidden else "")
        decay = recipe.weight_decay if decayed else 0.0
        rate = _rate(part, recipe, depth)
        found.append({"params": parameters, "lr": rate, "weight_decay": decay, "name": name, "hidden": hidden})
    return found


def _part(name: str, recipe: OptimizerRecipe) -> str:
    if ".vision." in name:
        return "vision"
    if name.endswith(TABLE_NAMES):
        return "words" if name.endswith(WORDS) and recipe.layer_decay != 1.0 else "table"
    if recipe.layer_decay == 1.0:
        return "rest"
    layer = _LAYER.search(name)
    if layer is not None:
        return f"layer{int(layer[1])}"
    return "embeddings" if ".embeddings." in name or ".region_embedding." in name else "rest"


def _rate(part: str, recipe: OptimizerRecipe, depth: int) -> float:
    """The peak rate; with layer-wise decay the embeddings are the lowest layer; heads and what objectives own keep the
    full rate."""
    own = recipe.vision_lr if part == "vision" else recipe.table_lr if part in TABLES else None
    if own is not None:
        return own
    if part.startswith("layer"):
        return recipe.lr * recipe.layer_decay ** (depth - int(part.removeprefix("layer")))
    if part in ("embeddings", "words"):
        return recipe.lr * recipe.layer_decay ** (depth + 1)
    return recipe.lr


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    """The recipe's optimiser over the model's trainable parameters.

    Raises:
        ConfigError: its library is not installed.
    """
    groups = parameter_groups(model, recipe)
    plain: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas}
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, **plain, fused=True)
    if recipe.name == "adam":
        return torch.optim.Adam(groups, **plain, fused=True)
    if recipe.name == "sgd":
        # PyTorch has no rule yet for its one-kernel SGD on shards
        how = {"foreach": True} if any(isinstance(p, DTensor) for p in model.parameters()) else {"fused": True}
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, **how)
    if recipe.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=recipe.lr)
    if recipe.name == "adamw8bit":
        if find_spec("bitsandbytes") is None:
            raise ConfigError("optimizer.name adamw8bit needs a library", hint="pip install bitsandbytes")
        import bitsandbytes

        found: Optimizer = bitsandbytes.optim.AdamW8bit(groups, **plain)
        return found
    hidden = [group for group in groups if group["hidden"]]
    if not hidden:
        raise ConfigError("optimizer.name muon: nothing between hidden states is trained", hint="take adamw")
    muon = torch.optim.Muon(hidden, lr=recipe.lr, momentum=recipe.momentum, adjust_lr_fn="match_rms_adamw")
    others = [group for group in groups if not group["hidden"]]
    return Together([muon, torch.optim.AdamW(others, **plain, fused=True)] if others else [muon])


class Together(Optimizer):
    """Several optimisers as one. (Muon is for hidden matrices alone: Jordan et al., 2024.)

    Args:
        parts: the optimisers; their groups stay theirs, so that a schedule set here reaches them.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._link()

    def _link(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the states of the parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()


def schedule(recipe: OptimizerRecipe, steps: int) -> Callable[[int], float]:
    """Factor of the peak rate at each step: a linear warm-up, then the recipe's shape, to zero where it falls."""
    warmup = max(1, round(recipe.warmup * steps) if recipe.warmup_steps is None else recipe.warmup_steps)
    if recipe.schedule == "plateau":
        return Plateau(warmup, recipe.factor, recipe.patience)
    drops = [round(share * steps) for share in recipe.milestones]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        if recipe.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if recipe.schedule == "multistep":
            return recipe.factor ** sum(step >= drop for drop in drops)
        return 1.0 if recipe.schedule == "constant" else max(0.0, 1 - done)

    return factor


class Plateau:
    """Warm-up, then the full rate, times ``factor`` whenever the watched measure has not risen for a while.

    Args:
        warmup: steps.
        factor: of a drop.
        patience: evaluations without a better result that are put up with.
    """

    def __init__(self, warmup: int, factor: float, patience: int) -> None:
        self.warmup, self.factor, self.patience = warmup, factor, patience
        self.best: float | None = None
        self.worse = 0
        self.height = 1.0

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) * self.height

    def note(self, measured: float) -> None:
        """Take notice of an evaluation; more is better."""
        if self.best is None or measured > self.best:
            self.best, self.worse = measured, 0
            return
        self.worse += 1
        if self.worse > self.patience:
            self.height, self.worse = self.height * self.factor, 0
