"""Corpora: one module each, found by file name (``starter``, ``folder``, ``text``, ...).

A module has ``Options`` (pydantic) and ``open_source(options, *, report) -> Source``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from mmbert import plugins
from mmbert.data.records import BadRecords, Source
from mmbert.errors import ConfigError

_NEED_A_PLACE = ("folder", "legacy", "text")  # formats rather than corpora: a bare name is not enough to open one


def parse_data(spec: str) -> dict[str, Any]:
    """Read a corpus given as one word, as on the command line.

    ``starter`` and ``starter:SPLIT`` name a corpus; anything else is the path of a folder, with ``:SPLIT`` behind it
    where no folder of the whole name exists. (A folder that is called like a corpus: write ``./starter``.) A ``.json``
    file is an annotation file of VL-BERT or MM-BERT.

    Returns:
        Options for ``open_data``: ``{"source": ..., "split": ...}`` or ``{"source": "folder", "root": ..., ...}``.
    """
    head, _, split = spec.partition(":")
    if head in plugins.names(__name__) and head not in _NEED_A_PLACE:
        return {"source": head, "split": split} if split else {"source": head}
    if spec.endswith((".json", ".jsonl")) and Path(spec).is_file():
        return {"source": "legacy", "path": spec}
    place, colon, split = spec.rpartition(":")
    if colon and split and not Path(spec).exists() and Path(place).exists():
        return {"source": "folder", "root": place, "split": split}
    return {"source": "folder", "root": spec}


def open_data(spec: str | Mapping[str, Any], *, report: BadRecords | None = None, **overrides: Any) -> Source:
    """Open a corpus.

    Args:
        spec: as for ``parse_data``, or its options with ``source`` among them.
        report: decides about bad records and collects them; without it they are errors.
        overrides: options that win over those in ``spec``; None means "not given".

    Raises:
        ConfigError: unknown source or option.
        DataError: the corpus is missing or has a bad record.
    """
    options = parse_data(spec) if isinstance(spec, str) else dict(spec)
    options.update({key: value for key, value in overrides.items() if value is not None})
    name = options.pop("source", None)
    if name is None:
        raise ConfigError(
            f"data {options} names no source", hint=f"add source: one of {', '.join(plugins.names(__name__))}"
        )
    module = plugins.load(__name__, name)
    try:
        checked = module.Options(**options)
    except ValidationError as error:
        raise _config_error(name, error, module.Options.model_fields) from error
    return cast(Source, module.open_source(checked, report=report))


def _config_error(name: str, error: ValidationError, fields: Mapping[str, Any]) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = plugins.nearest(key, fields)
        return ConfigError(
            f"unknown option {key!r} of data source {name!r}",
            hint=f"did you mean {close!r}?" if close else f"known: {', '.join(fields)}",
        )
    return ConfigError(f"option {key!r} of data source {name!r}: {first['msg']}")


def catalogue() -> list[dict[str, Any]]:
    """Every source: its name, the first line of its documentation, its splits and its options."""
    found = []
    for name in plugins.names(__name__):
        module = plugins.load(__name__, name)
        summary = (module.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        splits = list(getattr(module, "SPLITS", ()))
        found.append({"name": name, "summary": summary, "splits": splits, "options": list(module.Options.model_fields)})
    return found
