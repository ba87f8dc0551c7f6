"""mm-bert: a multilingual single-stream vision-language encoder.

``import mmbert`` is cheap: the names below load PyTorch only when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "MMBert": "mmbert.api.front_door",
    "MMBertProcessor": "mmbert.api.processing",
    "MMBertConfig": "mmbert.model.configuration",
    "MMBertModel": "mmbert.model.modeling",
    "MMBertForPreTraining": "mmbert.model.modeling",
    "MMBertForImageTextMatching": "mmbert.model.task_models",
    "MMBertForMultipleChoice": "mmbert.model.task_models",
    "MMBertForMultimodalLexicalTranslation": "mmbert.model.task_models",
    "MMBertForQuestionAnswering": "mmbert.model.task_models",
    "MMBertForReferringExpressions": "mmbert.model.task_models",
    "MMBertForTranslation": "mmbert.model.task_models",
    "MMBertForConditionalGeneration": "mmbert.model.conditional_generation",
    "Regions": "mmbert.vision.regions",
    "load_image": "mmbert.vision.images",
    "SearchIndex": "mmbert.search.index",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.api.processing import MMBertProcessor
    from mmbert.model.conditional_generation import MMBertForConditionalGeneration
    from mmbert.model.configuration import MMBertConfig
    from mmbert.model.modeling import MMBertForPreTraining, MMBertModel
    from mmbert.model.task_models import (
        MMBertForImageTextMatching,
        MMBertForMultimodalLexicalTranslation,
        MMBertForMultipleChoice,
        MMBertForQuestionAnswering,
        MMBertForReferringExpressions,
        MMBertForTranslation,
    )
    from mmbert.search.index import SearchIndex
    from mmbert.vision.images import load_image
    from mmbert.vision.regions import Regions


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mmbert' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
