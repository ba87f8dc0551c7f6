"""What objectives need of the model, of each other and of a task's labels, looked at before anything is computed.

An objective's module may say ``NEEDS`` (parts of the model: keys of :data:`PARTS`, or ``heads.NAME``), ``BESIDE`` (an
objective of the same component whose results it reads) and ``labels_read(options)`` (what it reads of the labels beside
their numbers); a task's module says in ``LABELS`` what is there to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from mmbert.errors import ConfigError
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.plugins import load
from mmbert.training.recipe import validation_error


def _gives_classes(model: MMBertForPreTraining) -> bool:
    """Whether regions may have class distributions. (Those of a store are looked at where it is opened.)"""
    vision = model.trunk.vision
    return vision is None or vision.classes or vision.takes_boxes


PARTS: dict[str, tuple[str, Callable[[MMBertForPreTraining], bool], str]] = {
    "embeddings": (
        "an embedding of texts and images",
        lambda model: model.embedding_head is not None,
        "set model.config.embedding_size above 0",
    ),
    "match": ("a match head", lambda model: model.match_head is not None, "set model.config.match_outputs to 1"),
    "pooled": ("a pooler", lambda model: model.trunk.pooler is not None, "set model.config.with_pooler"),
    "tokens": (
        "a head for masked tokens",
        lambda model: model.token_head is not None,
        "set model.config.with_mlm_head",
    ),
    "region classes": (
        "a head for region classes",
        lambda model: model.region_head is not None,
        "set model.config.num_region_classes, or choose mvfr",
    ),
    "class distributions": (
        "a vision encoder that gives class distributions",
        _gives_classes,
        "set model.config.vision.classes, or choose mvfr",
    ),
    "region features": (
        "a head for region features",
        lambda model: model.feature_head is not None,
        "set model.config.region_regression",
    ),
}
"""By name of a part: what it is, whether a model has it, and how it gets it."""


def read_objective(name: str, options: Mapping[str, Any]) -> tuple[ModuleType, BaseModel]:
    """The module of an objective and its checked options.

    Args:
        name: ``component/objective``.
        options: as the recipe has them.

    Raises:
        ConfigError: no such objective, or a wrong option.
    """
    module = load("mmbert.objectives", name.rsplit("/", 1)[1])
    try:
        return module, module.Options(**options)
    except ValidationError as error:
        raise validation_error(error, module.Options, f"objective {name}") from error
    except TypeError as error:
        raise ConfigError(f"objective {name}: {error}") from error


def check_needs(model: MMBertForPreTraining, objectives: Mapping[str, tuple[ModuleType, BaseModel]]) -> None:
    """See that objectives have what they need; one of weight 0 that no other reads may stand there without.

    Args:
        model: to be trained.
        objectives: by ``component/objective``.

    Raises:
        ConfigError: a part of the model, or an objective, is missing.
    """
    learned = [name for name, (_, options) in objectives.items() if getattr(options, "weight", 1.0)]
    read = {f"{name.rsplit('/', 1)[0]}/{getattr(objectives[name][0], 'BESIDE', None)}" for name in learned}
    for name, (module, _) in objectives.items():
        if name not in learned and name not in read:
            continue
        for part in getattr(module, "NEEDS", ()):
            what, hint = _missing(model, part)
            if what:
                raise ConfigError(f"objective {name} needs a model with {what}", hint=hint)
        beside = getattr(module, "BESIDE", None)
        component = name.rsplit("/", 1)[0]
        if beside is not None and f"{component}/{beside}" not in objectives:
            raise ConfigError(
                f"objective {name} needs {beside} in the same component",
                hint=f"add components.{component}.objectives.{beside}: {{}}",
            )


def _missing(model: MMBertForPreTraining, part: str) -> tuple[str, str]:
    """What a model lacks and how it gets it; empty where it has it."""
    if part.startswith("heads."):
        head = part.removeprefix("heads.")
        return ("", "") if head in model.heads else (f"a head {head!r}", f"add model.config.heads.{head}")
    what, has, hint = PARTS[part]
    return ("", "") if has(model) else (what, hint)


def check_labels(component: str, task: ModuleType, objectives: Mapping[str, Mapping[str, Any]]) -> None:
    """See that the task's labels say all that the objectives of a component read.

    Raises:
        ConfigError: they do not, or an option is wrong.
    """
    for objective, given in objectives.items():
        module, options = read_objective(f"{component}/{objective}", given)
        read = module.labels_read(options) if hasattr(module, "labels_read") else ()
        for label in read:
            if label not in getattr(task, "LABELS", ()):
                raise ConfigError(
                    f"objective {objective}, as its options are, reads labels {label!r}, which the task does not make",
                    where=f"components.{component}",
                )
