"""Finding parts by file name: a task, corpus or vision encoder is one module in its package, with typed options.

Adding a part means adding a file; no table has to be kept. And packages that only some parts need: extras of the
installation.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from mmbert.errors import ConfigError, UsageError, said_by_check

if TYPE_CHECKING:
    from pydantic import BaseModel

OptionsT = TypeVar("OptionsT", bound="BaseModel")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice spelled most like ``name``, or None when none is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def names(package: str) -> list[str]:
    """Names of the public modules of ``package`` (``base`` and ``_private`` ones left out)."""
    found = importlib.import_module(package)
    return sorted(
        m.name for m in pkgutil.iter_modules(found.__path__) if m.name != "base" and not m.name.startswith("_")
    )


def load(package: str, name: str) -> ModuleType:
    """Import ``package.name``.

    Raises:
        ConfigError: no such module; the message names the nearest one.
    """
    known = names(package)
    if name not in known:
        close = nearest(name, known)
        kind = package.rsplit(".", 1)[-1]
        raise ConfigError(
            f"unknown name {name!r} in {kind}",
            hint=f"did you mean {close!r}?" if close else f"known: {', '.join(known)}",
        )
    return importlib.import_module(f"{package}.{name}")


def read_options(model: type[OptionsT], options: Mapping[str, Any], of: str) -> OptionsT:
    """The options of a part, typed; numbers may be given as text.

    Args:
        model: the pydantic class that says which there are.
        options: as somebody wrote them.
        of: what they belong to, for messages: ``data source 'folder'``.

    Raises:
        ConfigError: an unknown option (the nearest is named), a missing one, or a value that it cannot have.
    """
    from pydantic import ValidationError

    try:
        return model(**options)
    except ValidationError as error:
        first, known = error.errors()[0], model.model_fields
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            close = nearest(key, known)
            hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown option {key!r} of {of}", hint=hint) from error
        raise ConfigError(f"{f'option {key!r} of ' if key else ''}{of}: {said_by_check(first)}") from error


def need_packages(extra: str, *packages: str, message: str | None = None) -> list[ModuleType]:
    """Import packages that an extra of the installation brings.

    Args:
        extra: its name, for the hint.
        packages: names of them, or of modules in them.
        message: what is said where one is missing; by default that it is not installed.

    Raises:
        UsageError: one is not installed.
    """
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        told = message or f"{error.name} is not installed"
        raise UsageError(told, hint=f"pip install 'mm-bert[{extra}]'") from error
