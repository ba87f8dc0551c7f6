"""What `mmbert info` says about a folder of `mmbert export`. Reads its files; no graph is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmbert.cli.common import human_bytes

RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def describe_export(folder: Path) -> dict[str, Any]:
    """What ``export.json`` and the files beside it say.

    Returns:
        ``path``, ``format``, ``model`` (what was exported), ``fingerprint``, ``graphs`` (rows of
        ``mmbert.api.export_folder.summary``, with ``bytes`` and ``seconds``), ``measured`` (whether parity and speed
        were), ``machine``, ``config``.

    Raises:
        CheckpointError: ``export.json`` is damaged, or a graph is missing.
    """
    from mmbert.api.export_folder import read_about, summary

    about = read_about(folder)
    graphs = [
        row | {"bytes": _graph_bytes(folder / about.file(row["graph"])), "seconds": about.graphs[row["graph"]].seconds}
        for row in summary(about)
    ]
    return {
        "path": str(folder),
        "format": about.format,
        "model": about.model,
        "fingerprint": about.fingerprint,
        "graphs": graphs,
        "measured": all(row["seconds"] is not None for row in graphs),
        "machine": about.machine,
        "config": about.config,
    }


def _graph_bytes(path: Path) -> int:
    """Of the graph, and of its weights where OpenVINO keeps them beside it."""
    weights = path.with_suffix(".bin")
    beside = path.suffix == ".xml" and weights.is_file()
    return path.stat().st_size + (weights.stat().st_size if beside else 0)


def said_of(row: dict[str, Any]) -> str:
    """One graph in words: ``text: fp32, off by at most 3e-07 (agreement 1.00000), 1.1 times as fast as PyTorch …``."""
    line = f"{row['graph']}: {row['precision']}"
    if "times_as_fast" not in row:
        return line
    first, *others = row["times_as_fast"].items()
    speed = f"{first[1]:g} times as fast as PyTorch with {first[0]} thread{'s' if first[0] != '1' else ''}"
    speed += "".join(f", {times:g} with {threads}" for threads, times in others)
    return f"{line}, off by at most {row['max_abs']:.2g} (agreement {row['agreement']:.5f}), {speed}"


def export_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Labels and lines for people."""
    rows = [
        ("model", facts["path"]),
        ("type", f"exported for {RUNTIMES[facts['format']]}; runs on the CPU"),
        ("made from", facts["model"] or "not said"),
    ]
    for number, row in enumerate(facts["graphs"]):
        rows.append(("" if number else "graphs", f"{said_of(row)}, {human_bytes(row['bytes'])}"))
        if row["note"]:
            rows.append(("", f"  {row['note']}"))
    rows.append(("measured", _machine(facts["machine"]) if facts["measured"] else "no (mmbert export --no-measure)"))
    return rows


def _machine(machine: dict[str, Any]) -> str:
    said = [f"on {machine.get('processor') or 'a processor not said'}"]
    if machine.get("vnni") is not None:
        said.append("with VNNI" if machine["vnni"] else "without VNNI")
    said.append(f"{machine.get('cores', '?')} cores")
    packages = machine.get("packages")
    if isinstance(packages, dict):
        said += [f"{name} {version}" for name, version in packages.items()]
    return ", ".join(said)
