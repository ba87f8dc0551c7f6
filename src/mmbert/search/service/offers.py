"""What the service can be asked, and which model answers it: the index's own, or one that serves beside it.

Each question is a feature, a module of ``FEATURES``. A feature is offered by the model that was named for it, else by
the index's model if that can, else by the first further model that can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmbert import plugins
from mmbert.errors import UsageError

FEATURES = "mmbert.search.service.features"
OF_RUNS = ("best", "last")
"""Folders that training calls its models; the run's name then says which model it is."""


@dataclass(frozen=True)
class Further:
    """A model that serves beside the index's own.

    Args:
        model: any that the front door loads.
        questions: features that it answers whoever else could, and only these; none: all that no model before it can.
    """

    model: Any
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A feature, and who answers.

    Attributes:
        name: of the feature.
        feature: its module.
        model: None where nobody can.
        reason: why nobody can.
    """

    name: str
    feature: ModuleType
    model: Any
    reason: str | None = None


def read_further(said: str) -> tuple[tuple[str, ...], str]:
    """Questions and model of ``"runs/x"`` or ``"caption,translate=runs/x"``; a folder with ``=`` in its name is one.

    Raises:
        UsageError: there is no such question, or no model is given.
    """
    head, equals, name = said.partition("=")
    if not equals or Path(said).exists():
        return (), said
    questions = tuple(dict.fromkeys(part.strip() for part in head.split(",")))
    for question in questions:
        _known(question)
    if not name:
        raise UsageError(f"which model is to answer {head}?", hint=f"--also {head}=MODEL")
    return questions, name


def offers_of(own: Any, further: Sequence[Further] = ()) -> list[Offer]:
    """Every feature with the model that answers it.

    Args:
        own: the model that made the index.
        further: in the order in which they are asked.

    Raises:
        UsageError: a further model adds nothing, cannot do what it is named for, or two are named for one feature.
    """
    named = _named(further)
    offers = []
    for name in plugins.names(FEATURES):
        feature = plugins.load(FEATURES, name)
        others = [] if _of_the_index(feature) else [one.model for one in further if not one.questions]
        models = [named[name]] if name in named else [own, *others]
        reasons = [missing(feature, model) for model in models]
        chosen = next((model for model, reason in zip(models, reasons, strict=True) if reason is None), None)
        offers.append(Offer(name, feature, chosen, None if chosen is not None else reasons[0]))
    for one in further:
        if not any(offer.model is one.model for offer in offers):
            raise _adds_nothing(one.model, offers)
    return offers


def missing(feature: ModuleType, model: Any) -> str | None:
    """Why this model does not have this feature; None where it has."""
    no_network: str | None = getattr(model, "no_network", None)
    if no_network is not None and getattr(feature, "NEEDS_NETWORK", False):
        return no_network
    reason: str | None = feature.missing(model)
    return reason


def name_of_model(name: str | Path | None) -> str | None:
    """A model's name without the folders that it lies in; a run's ``best`` is called by the run's name too."""
    if name is None:
        return None
    parts = Path(name).parts
    return "/".join(parts[-2:] if parts[-1:] and parts[-1] in OF_RUNS else parts[-1:]) or None


def _named(further: Sequence[Further]) -> dict[str, Any]:
    """Feature -> the model that was named for it."""
    named: dict[str, Any] = {}
    for one in further:
        for question in one.questions:
            feature = _known(question)
            if _of_the_index(feature):
                raise UsageError(f"{question} is answered by the model that made the index, and by no other")
            if question in named:
                raise UsageError(f"two models are to answer {question}")
            if (reason := missing(feature, one.model)) is not None:
                raise UsageError(f"cannot answer {question}: {reason}", where=one.model.name_or_path)
            named[question] = one.model
    return named


def _known(question: str) -> ModuleType:
    """The module of a feature.

    Raises:
        UsageError: there is none of that name.
    """
    known = plugins.names(FEATURES)
    if question not in known:
        close = plugins.nearest(question, known)
        hint = f"did you mean {close!r}?" if close else f"there are: {', '.join(known)}"
        raise UsageError(f"the service has no question {question!r}", hint=hint)
    return plugins.load(FEATURES, question)


def _of_the_index(feature: ModuleType) -> bool:
    return bool(getattr(feature, "OF_THE_INDEX", False))


def _adds_nothing(model: Any, offers: Sequence[Offer]) -> UsageError:
    able = [o.name for o in offers if not _of_the_index(o.feature) and missing(o.feature, model) is None]
    where = model.name_or_path
    if not able:
        return UsageError("this model answers none of the service's questions", where=where)
    return UsageError(
        "this model adds nothing: other models answer all that it can",
        where=where,
        hint=f"it can {', '.join(able)}; to prefer it for some, name them: --also {able[0]}={where or 'MODEL'}",
    )
