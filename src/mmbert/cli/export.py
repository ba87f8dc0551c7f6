"""Write a model as graphs for ONNX Runtime or OpenVINO, in int8 where that is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli._exports import said_of
from mmbert.cli.common import JsonOption, ModelOption, load_model, note, print_json


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The new folder.")],
    model: ModelOption = "starter",
    kind: Annotated[str, typer.Option("--format", "-f", help="onnx or openvino.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the graphs that are faster so on this machine.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Compare results and speed with PyTorch's.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write a model as graphs for ONNX Runtime or OpenVINO, in int8 where that is faster.

    The folder can be used like a model folder, on the CPU, for embedding, matching, searching and serving. How far the
    results are from PyTorch's and how fast each graph is on this machine is printed, and kept in export.json.

    Examples:

      mmbert export --out exported
      mmbert export --model runs/first/best --format onnx --int8 --out exported
      mmbert info exported
      mmbert embed photos --model exported --out photos.npy
      mmbert serve --backend onnx --model exported
    """
    from mmbert.api.export import export_model
    from mmbert.api.export_folder import summary

    bert = load_model(model, "cpu")
    about = export_model(bert, out, format=kind, int8=int8, measure=measure, say=note)
    rows = summary(about)
    if as_json:
        print_json({"out": out, "format": about.format, "machine": about.machine, "graphs": rows})
        return
    for row in rows:
        print(said_of(row))
        if row["note"]:
            note(f"{row['graph']}: {row['note']}")
    note(f"{out} can be given as --model")
