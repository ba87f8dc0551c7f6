"""Finding parts by file name: a task, corpus or vision encoder is one module in its package.

Adding a part means adding a file; no table has to be kept. And packages that only some parts need: extras of the
installation.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from mmbert.errors import ConfigError, UsageError


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
