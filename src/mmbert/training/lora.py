"""Low-rank adapters through the library peft: put in before training, taken out (merged) where a model is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.util import find_spec

from torch import nn

from mmbert.errors import ConfigError
from mmbert.training.recipe import LoraRecipe


def add_lora(model: nn.Module, recipe: LoraRecipe) -> None:
    """Put an adapter beside each linear layer that the recipe names; only these and ``train`` keep a gradient.

    Raises:
        ConfigError: peft is not installed, or a name fits nothing.
    """
    if find_spec("peft") is None:
        raise ConfigError("optimizer.lora needs a library", hint="pip install peft")
    from peft import LoraConfig, inject_adapter_in_model

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for wanted in recipe.modules:
        if not any(name.endswith(f".{wanted}") and isinstance(m, nn.Linear) for name, m in model.named_modules()):
            raise ConfigError(f"optimizer.lora.modules: no linear layer's name ends with {wanted!r}")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules=recipe.modules,
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        further = name in trained and any(fnmatchcase(name, pattern) for pattern in recipe.train)
        parameter.requires_grad_(".lora_" in name or further)


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
