"""Heads that tasks ask for: what their outputs mean stands in the training records."""

from __future__ import annotations

from mmbert.data.records import Source
from mmbert.plugins import load
from mmbert.training.build import task_options
from mmbert.training.recipe import ModelRecipe, Recipe


def with_task_heads(model: ModelRecipe, recipe: Recipe, sources: dict[str, Source]) -> ModelRecipe:
    """The model with a head for each task of the mixture that has a function ``heads(parts)``.

    ``parts`` are the options and the source of each of its components; it gives options by head, as ``config.heads``
    has them. What the recipe says of a head itself (its kind, its dropout) wins.

    Raises:
        ConfigError: unknown options of a task, or a list of outputs that cannot be read.
    """
    wanted: dict[str, dict[str, object]] = {}
    for task in dict.fromkeys(component.task for component in recipe.components.values()):
        module = load("mmbert.tasks", task)
        if hasattr(module, "heads"):
            named = [name for name, component in recipe.components.items() if component.task == task]
            wanted |= module.heads([(task_options(name, recipe.components[name]), sources[name]) for name in named])
    if not wanted:
        return model
    given = model.config.get("heads") or {}
    merged = {name: options | given.get(name, {}) for name, options in wanted.items()}
    return model.model_copy(update={"config": {**model.config, "heads": {**given, **merged}}})
