"""Corpora: one module each, found by file name (``starter``, ``folder``, ``text``, ...).

A module has ``Options`` (pydantic) and ``open_source(options, *, report) -> Source``. A corpus that others published
also has ``CARD`` (``mmbert.data.corpus.CorpusCard``) and ``SPLITS``, and where its counts depend on options
``published(options)``; with ``count(record)`` it counts more than captions and images. ``mmbert.data.prepare`` uses
these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import yaml
from pydantic import BaseModel

from mmbert import plugins
from mmbert.data.metadata import is_table
from mmbert.data.records import BadRecords, Source
from mmbert.data.yaml_values import read_value
from mmbert.errors import ConfigError, DataError

_FORMATS = ("folder", "legacy", "text", "prepared", "stream", "joined")
"""Formats rather than corpora: their names alone open nothing."""
_READY = ("starter",)  # comes with the package; every other corpus is named with the folder it lies in
_STORE = "corpus.json"
ROOT = "{root}"
"""In an option that is a path: the folder that ``root`` says."""


def parse_data(spec: str) -> dict[str, Any]:
    """Read a corpus given as one word, as on the command line.

    ``starter`` and ``starter:SPLIT`` name a corpus; anything else is the path of a folder, with ``:SPLIT`` behind it
    where no folder of the whole name exists. (A folder that is called like a corpus: write ``./starter``.) A folder
    that ``mmbert data prepare`` made is known by its ``corpus.json``. A ``.json`` file is
    an annotation file of VL-BERT or MM-BERT. A URL (``s3://…``) is such a store somewhere else.
    ``{source: …, root: …}`` is a mapping of options, as in a recipe.

    Returns:
        Options for ``open_data``: ``{"source": ..., "split": ...}``, or ``{"source": "folder", "root": ..., ...}`` (or
        ``"prepared"``).

    Raises:
        ConfigError: ``{…}`` is no YAML mapping.
        DataError: it is the metadata file of a folder, which is given by the folder.
    """
    if spec.startswith("{") and not Path(spec).exists():
        return _mapping(spec)
    if is_url(spec):
        place, colon, split = spec.rpartition(":")
        whole = not colon or "/" in split
        return {"source": "stream", "root": spec} if whole else {"source": "stream", "root": place, "split": split}
    head, _, split = spec.partition(":")
    if head in _READY or (head not in _FORMATS and head in plugins.names(__name__) and not Path(head).exists()):
        return {"source": head, "split": split} if split else {"source": head}
    if is_table(Path(spec).name) and Path(spec).is_file():
        raise DataError("is the metadata of a folder", where=spec, hint=f"give its folder: {Path(spec).parent}")
    if spec.endswith((".json", ".jsonl")) and Path(spec).is_file():
        return {"source": "legacy", "path": spec}
    place, colon, split = spec.rpartition(":")
    if colon and split and not Path(spec).exists() and Path(place).exists():
        return {"source": _kind(place), "root": place, "split": split}
    return {"source": _kind(spec), "root": spec}


def _mapping(spec: str) -> dict[str, Any]:
    """``{source: …, root: …}`` as options.

    Raises:
        ConfigError: it is no YAML mapping.
    """
    try:
        return dict(read_value(spec))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"data {spec} is not valid YAML", hint="as in {source: mlt, root: FOLDER}") from error


def is_store(folder: str | Path) -> bool:
    """Whether ``mmbert data prepare`` made this folder; what lies at a URL is nothing else."""
    return is_url(folder) or (Path(folder).expanduser() / _STORE).is_file()


def is_url(place: str | Path) -> bool:
    """Whether this is a place on another file system (``s3://…``)."""
    return "://" in str(place)


def _kind(folder: str) -> str:
    return "prepared" if is_store(folder) else "folder"


def open_data(spec: str | Mapping[str, Any], *, report: BadRecords | None = None, **overrides: Any) -> Source:
    """Open a corpus.

    Args:
        spec: as for ``parse_data``, or its options with ``source`` among them; ``{root}`` at the start of a path is
            the option ``root``.
        report: decides about bad records and collects them; without it they are errors.
        overrides: options that win over those in ``spec``; None means "not given".

    Raises:
        ConfigError: unknown source or option.
        DataError: the corpus is missing or has a bad record.
    """
    options = parse_data(spec) if isinstance(spec, str) else dict(spec)
    options.update({key: value for key, value in overrides.items() if value is not None})
    name = options.pop("source", None)
    root, given = options.get("root"), options
    if root is not None:
        options = placed(options, str(root))
    if name is None:
        raise ConfigError(
            f"data {options} names no source", hint=f"add source: one of {', '.join(plugins.names(__name__))}"
        )
    module = plugins.load(__name__, name)
    if options != given and "root" not in module.Options.model_fields:  # it was only for the paths
        options.pop("root")
    return cast(Source, module.open_source(check_options(name, module, options), report=report))


def placed(value: Any, root: str) -> Any:
    """``value`` with ``root`` for ``{root}`` at the start of every text in it (in lists and mappings, too)."""
    if isinstance(value, str) and (value == ROOT or value.startswith(f"{ROOT}/")):
        return root + value.removeprefix(ROOT)
    if isinstance(value, Mapping):
        return {key: placed(part, root) for key, part in value.items()}
    return [placed(part, root) for part in value] if isinstance(value, list) else value


def check_options(name: str, module: ModuleType, options: Mapping[str, Any]) -> BaseModel:
    """The options of a source, typed.

    Raises:
        ConfigError: one is unknown, missing or wrong.
    """
    root = module.Options.model_fields.get("root")
    if hasattr(module, "CARD") and root is not None and root.is_required() and "root" not in options:
        hint = f"mmbert data prepare {name} --from DOWNLOADS --out STORE, then give STORE (`mmbert data list {name}`)"
        raise ConfigError(f"data source {name!r} needs its files", hint=hint)
    return cast(BaseModel, plugins.read_options(module.Options, options, f"data source {name!r}"))


def catalogue() -> list[dict[str, Any]]:
    """Every source: its name, the first line of its documentation, its splits, its options and its card (or None)."""
    found = []
    for name in plugins.names(__name__):
        module = plugins.load(__name__, name)
        summary = (module.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        card = getattr(module, "CARD", None)
        found.append(
            {
                "name": name,
                "summary": summary,
                "splits": list(getattr(module, "SPLITS", ())),
                "options": list(module.Options.model_fields),
                "card": card.as_dict() if card is not None else None,
            }
        )
    return found
