"""Low-rank adapters through the library peft: put in before training, taken out (merged) where a model is saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.util import find_spec

from torch import nn

from mmbert.errors import ConfigError
from mmbert.training.recipe import LoraRecipe

VISION = "trunk.vision."
"""Names of layers that an adapter is not put beside without being asked for."""


def add_lora(model: nn.Module, recipe: LoraRecipe) -> None:
    """Put an adapter beside each linear layer that the recipe names; only these and ``train`` keep a gradient.

    A layer whose weight has no gradient already (``optimizer.frozen``) stays as it is.

    Raises:
        ConfigError: peft is not installed, a name fits nothing, or no layer is left.
    """
    if find_spec("peft") is None:
        raise ConfigError("optimizer.lora needs a library", hint="pip install peft")
    from peft import LoraConfig, inject_adapter_in_model

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules="|".join(map(re.escape, _adapted(model, recipe))),  # these, and none whose name ends alike
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        further = name in trained and any(fnmatchcase(name, pattern) for pattern in recipe.train)
        parameter.requires_grad_(".lora_" in name or further)


def _adapted(model: nn.Module, recipe: LoraRecipe) -> list[str]:
    """Whole names of the layers that get an adapter."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, None] = {}
    for wanted in recipe.modules:
        named = [name for name in linear if _is_meant(name, wanted)]
        if not named:
            raise ConfigError(
                f"optimizer.lora.modules: no linear layer's name ends with {wanted!r}",
                hint=f"of the vision encoder: '{VISION}*{wanted}'"
                if any(name.endswith(f".{wanted}") for name in linear)
                else f"names look like {next(iter(linear))!r}",
            )
        found |= dict.fromkeys(name for name in named if linear[name].weight.requires_grad)
    if not found:
        raise ConfigError(
            "optimizer.lora.modules: all of these layers are frozen",
            hint="name others, or leave some out of optimizer.frozen (and of what the model's configuration freezes)",
        )
    return list(found)


def _is_meant(name: str, wanted: str) -> bool:
    """Whether ``wanted`` is the end of a layer's name outside the vision encoder, or a pattern of the whole name."""
    return fnmatchcase(name, wanted) or (name.endswith(f".{wanted}") and not name.startswith(VISION))


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Inside, the model's linear layers are plain ones that have the adapters' share in their weights."""
    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    kept = []
    for name, module in adapted:
        base = module.get_base_layer()
        kept.append(base.weight.detach().clone())
        module.merge()
        _put(model, name, base)
    try:
        yield
    finally:
        for (name, module), weight in zip(adapted, kept, strict=True):
            module.unmerge()
            module.get_base_layer().weight.data.copy_(weight)  # what was added and taken away leaves rounding behind
            _put(model, name, module)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
