"""From a name to a loaded network: models that come with the package, in folders, and on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from mmbert.api.export_folder import is_exported
from mmbert.errors import CheckpointError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {"starter": ASSETS / "starter" / "model"}
"""Models that come with the package."""
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]
"""What is fetched from the hub: weights, configuration and tokenizer, and the card that `mmbert info` reads."""


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model: shipped by name, a folder, or a hub id (looked up in the cache when offline).

    Raises:
        CheckpointError: there is no such model.
    """
    name = str(name_or_path)
    folder = SHIPPED.get(name, Path(name))
    if (folder / "config.json").is_file():
        return folder
    if is_exported(folder):
        raise CheckpointError(
            "an exported model has graphs and no weights", where=name, hint="give the model that was exported"
        )
    if folder.exists() or name in SHIPPED or name.count("/") != 1 or name.startswith((".", "/")):
        raise CheckpointError(
            "no model here: config.json is missing" if folder.exists() else "no such model",
            where=name,
            hint=f"give a model folder, a hub id, or one of: {', '.join(SHIPPED)}",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED))
    except Exception as error:
        raise CheckpointError(
            f"no such folder, and the hub gave nothing: {type(error).__name__}",
            where=name,
            hint="offline? give a folder, or download the model first",
        ) from error


def load_model(folder: Path, dtype: torch.dtype) -> MMBertForPreTraining:
    """Load configuration and weights strictly.

    Raises:
        CheckpointError: unreadable, missing or extra weights, or weights of another shape.
    """
    try:
        with silent_transformers():
            config = MMBertConfig.from_pretrained(folder)
            model, report = MMBertForPreTraining.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                local_files_only=True,
                use_safetensors=True,
            )
    except Exception as error:
        message = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot load the model: {message[0] if message else type(error).__name__}", where=str(folder)
        ) from error
    wrong = {kind: sorted(map(_key_and_shapes, found)) for kind, found in report.items() if found}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise CheckpointError(
            f"weights do not fit the configuration: {kind.replace('_', ' ')}: {', '.join(keys[:3])}"
            + (f" and {len(keys) - 3} more" if len(keys) > 3 else ""),
            where=str(folder),
            hint="config.json and model.safetensors must come from the same model",
        )
    return model


def _key_and_shapes(entry: str | tuple[Any, ...]) -> str:
    """A weight's name; where shapes differ, with the stored and the expected one."""
    if isinstance(entry, str):
        return entry
    name, *shapes = entry
    return f"{name} ({' instead of '.join(str(list(shape)) for shape in shapes)})"


@contextmanager
def silent_transformers() -> Iterator[None]:
    """No bars for files of a few megabytes, and no tables of what is reported as an error anyway."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
