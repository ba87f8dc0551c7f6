"""What a user writes as YAML, in a recipe or a command line: there Norwegian (``no``) is a word.

YAML 1.1, as PyYAML reads it, takes ``yes``, ``no``, ``on`` and ``off`` for true and false; YAML 1.2 does not.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

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
