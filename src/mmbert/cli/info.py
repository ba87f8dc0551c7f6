"""Say what a model or export is (sizes, languages, licence, results), or how a run went."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from mmbert.cli._exports import describe_export, export_rows
from mmbert.cli._runs import describe_run, is_run, print_run
from mmbert.cli.common import JsonOption, find_model, human_bytes, human_count, print_json
from mmbert.errors import CheckpointError

# Longest safetensors header we read; the format itself allows no more.
MAX_HEADER = 100_000_000
SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "embedding_size",
    "max_text_tokens",
)


def info(
    model: Annotated[
        str, typer.Argument(help="'starter', a folder of a model, an export or a run, or a hub id.")
    ] = "starter",
    as_json: JsonOption = False,
) -> None:
    """Say what a model or export is (sizes, languages, licence, results), or how a run went.

    Reads files only; no weights are loaded. Of a folder of mmbert export it says what each graph is and how close to
    PyTorch and how fast it was when it was made.

    Examples:

      mmbert info starter
      mmbert info runs/first
      mmbert info runs/first/best --json
      mmbert info exported-int8
    """
    from mmbert.api.export_folder import is_exported

    if is_run(Path(model)):
        run = describe_run(Path(model))
        print_json(run) if as_json else print_run(run)
        return
    if is_exported(model):
        facts = describe_export(Path(model))
        facts |= _beside(Path(model), facts["config"])
        rows = export_rows(facts)
        if facts["results"]:
            rows.append(("", "results below are those of the model that it was made from"))
    else:
        facts = describe(find_model(model))
        rows = _weight_rows(facts)
    print_json(facts) if as_json else _print([*rows, *_rows(facts)])


def describe(folder: Path) -> dict[str, Any]:
    """What the files of a model folder say about it.

    Returns:
        ``path``, ``model_type``, ``parameters`` (``total`` and by part), ``dtypes``, ``bytes``, ``shape``, ``vision``,
        ``tokenizer``, ``languages``, ``license``, ``results`` (what ``metrics.json`` holds), ``config`` (all of it).
        What a folder does not say is None or empty.

    Raises:
        CheckpointError: no configuration or weights, or damaged ones.
    """
    config = _read_json(folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError("no weights (*.safetensors)", where=str(folder), hint="is this a finished model folder?")
    parts: dict[str, int] = defaultdict(int)
    dtypes: dict[str, int] = defaultdict(int)
    for path in weights:
        for name, (dtype, count) in read_header(path).items():
            parts[_part(name)] += count
            dtypes[dtype] += count
    return {
        "path": str(folder),
        "model_type": config.get("model_type"),
        "parameters": {"total": sum(parts.values()), **dict(sorted(parts.items(), key=lambda item: -item[1]))},
        "dtypes": dict(dtypes),
        "config": config,
    } | _beside(folder, config)


def _beside(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the weights or graphs: configuration in short, tokenizer, card and results."""
    card = _read_card(folder / "README.md")
    languages = card.get("language") or []
    return {
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "shape": {key: config[key] for key in SHAPE_KEYS if key in config},
        "vision": config.get("vision"),
        "tokenizer": _tokenizer(folder / "tokenizer.json"),
        "languages": [languages] if isinstance(languages, str) else list(languages),
        "license": card.get("license"),
        "results": _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {},
    }


def read_header(path: Path) -> dict[str, tuple[str, int]]:
    """Name to (dtype, number of elements) of every tensor of a safetensors file, from its header alone.

    The format: 8 bytes, the header's length as a little-endian integer; then the header, a JSON object.

    Raises:
        CheckpointError: not a safetensors file, or one that was cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise CheckpointError("not a safetensors file, or cut off", where=str(path))
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError("damaged safetensors header", where=str(path)) from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise CheckpointError(
            f"the file has {size:,} bytes, its header promises {8 + length + end:,}",
            where=str(path),
            hint="copy or download it again",
        )
    counts: dict[str, tuple[str, int]] = {}
    for name, entry in header.items():
        count = 1
        for extent in entry["shape"]:
            count *= extent
        counts[name] = (entry["dtype"], count)
    return counts


def _part(name: str) -> str:
    """The part of the network that a tensor belongs to: ``trunk.vision.backbone.…`` is ``vision``."""
    steps = name.split(".")
    return steps[1] if steps[0] == "trunk" and len(steps) > 1 else steps[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        best = path.parent / "best"
        hint = f"a training run; its model is {best}" if (best / path.name).is_file() else "give the folder of a model"
        raise CheckpointError(f"no {path.name}", where=str(path.parent), hint=hint) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read it: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", where=str(path))
    return value


def _tokenizer(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    model = _read_json(path).get("model", {})
    return {"type": model.get("type"), "vocabulary": len(model.get("vocab", ()))}


def _read_card(path: Path) -> dict[str, Any]:
    """The YAML block at the top of a model card; empty where there is none."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        return {}
    block, end, _ = text[4:].partition("\n---")
    if not end:
        return {}
    try:
        card = yaml.safe_load(block)
    except yaml.YAMLError as error:
        raise CheckpointError("the model card's YAML block cannot be read", where=str(path)) from error
    return card if isinstance(card, dict) else {}


def _results(facts: dict[str, Any]) -> list[str]:
    """One line per direction: the means over languages."""
    lines = [f"on {_said(facts['data'])}"] if facts.get("data") else []
    for direction, report in (facts.get("evaluation") or {}).items():
        if isinstance(report, float):  # BLEU and the like
            lines.append(f"{direction} {report:.2f}")
        mean = report.get("mean") if isinstance(report, dict) else None
        if mean:
            figures = ", ".join(
                f"{name} {100 * value:.1f} %" if name.startswith("R@") else f"{name.replace('_', ' ')} {value:g}"
                for name, value in mean.items()
            )
            lines.append(f"{direction.replace('_', ' ')}: {figures}")
    return lines


def _said(data: Any) -> str:
    return " ".join(f"{key}={value}" for key, value in data.items()) if isinstance(data, dict) else str(data)


def _vision(options: dict[str, Any] | None) -> str:
    if not options:
        return "none: takes precomputed region features"
    rest = ", ".join(f"{key} {value}" for key, value in options.items() if key != "kind")
    return f"{options.get('kind', '?')}: {rest}"


def _weight_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    parameters = dict(facts["parameters"])
    return [
        ("model", facts["path"]),
        ("type", facts["model_type"] or "not said"),
        ("parameters", f"{human_count(parameters.pop('total'))} ({', '.join(facts['dtypes'])})"),
        *(("", f"{human_count(count):>14}  {part}") for part, count in parameters.items()),
    ]


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What models and exports have both."""
    languages, tokenizer = facts["languages"], facts["tokenizer"]
    return [
        ("on disk", human_bytes(facts["bytes"])),
        ("shape", ", ".join(f"{key} {value}" for key, value in facts["shape"].items())),
        ("vision", _vision(facts["vision"])),
        ("tokenizer", "{type}, {vocabulary:,} tokens".format(**tokenizer) if tokenizer else "none"),
        ("languages", f"{len(languages)}: {' '.join(languages)}" if languages else "not said"),
        ("licence", facts["license"] or "not said"),
        *(("" if number else "results", line) for number, line in enumerate(_results(facts["results"]))),
    ]


def _print(rows: list[tuple[str, str]]) -> None:
    for label, value in rows:
        print(f"{label:<12}{value}")
