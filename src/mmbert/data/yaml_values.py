"""What a user writes as YAML, in a recipe or a command line: there Norwegian (``no``) is a word.

YAML 1.1, as PyYAML reads it, takes ``yes``, ``no``, ``on`` and ``off`` for true and false; YAML 1.2 does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from mmbert.errors import ConfigError

EXAMPLE = "languages=en,de"
_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_value(text: str) -> Any:
    """``"{no: bilde, en: image}"`` -> ``{"no": "bilde", "en": "image"}``; only true and false are true and false.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_setting(text: str, *, example: str = EXAMPLE, where: str | None = None) -> tuple[str, Any]:
    """``"languages=[no, de]"`` -> ``("languages", ["no", "de"])``.

    Args:
        text: NAME=VALUE.
        example: of one, for the hint.
        where: what it is part of.

    Raises:
        ConfigError: it is none, or the value is no YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{text!r} is not NAME=VALUE", where=where, hint=f"such as {example}")
    try:
        return name.strip(), read_value(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{text!r}: the value is not valid YAML", where=where, hint=f"such as {example}") from error


def read_settings(settings: Iterable[str], *, example: str = EXAMPLE, where: str | None = None) -> dict[str, Any]:
    """All of several ``NAME=VALUE``; arguments as of :func:`read_setting`.

    Raises:
        ConfigError: one is none, or a name is said twice.
    """
    found: dict[str, Any] = {}
    for text in settings:
        name, value = read_setting(text, example=example, where=where)
        if name in found:
            raise ConfigError(f"{name} is said twice", where=where, hint="keep one of them")
        found[name] = value
    return found
