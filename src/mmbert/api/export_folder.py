"""What a folder of ``mmbert export`` holds: the names of its files, and ``export.json`` that describes them.

Cheap to import: `mmbert info` reads such folders without the network's libraries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError, model_validator

from mmbert.errors import CheckpointError, said_by_check

Format = Literal["onnx", "openvino"]
FORMATS: tuple[str, ...] = get_args(Format)
Precision = Literal["fp32", "int8"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
EXPORTED = "export.json"
"""What the folder says about itself."""
CARD, RESULTS = "README.md", "metrics.json"
"""Of the model that was exported, where it has them: its card with languages and licence, and what was measured."""
EMBEDDING_HEAD = "embedding_head.safetensors"
"""Scale and query bank, which re-ranking asks for outside of the graphs."""


class GraphAbout(BaseModel):
    """One graph.

    Attributes:
        precision: of its matrix products.
        inputs: name of each argument and the names of its axes; "" where the size is fixed.
        parity: greatest distances from PyTorch's results on real inputs.
        seconds: least time of one pass over the same inputs, by number of threads and by what computed them.
        note: why the graph is not in the precision that was asked for.
    """

    precision: Precision = "fp32"
    inputs: dict[str, tuple[str, ...]]
    parity: dict[str, float] | None = None
    seconds: dict[str, dict[str, float]] | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> GraphAbout:
        if self.parity is not None and not {"max_abs", "relative", "agreement"} <= set(self.parity):
            raise ValueError(f"parity is incomplete: {', '.join(self.parity)}")
        compared = {"pytorch", self.precision}
        if self.seconds is not None and not (self.seconds and all(compared <= set(t) for t in self.seconds.values())):
            raise ValueError(f"seconds of {' and '.join(sorted(compared))} are not there")
        return self


class ExportAbout(BaseModel):
    """The whole folder.

    Attributes:
        version: of this description.
        format: ``onnx`` or ``openvino``.
        model: name of what was exported.
        fingerprint: of what was exported; an index that it made can be searched with the graphs.
        config: of the model.
        preprocessing: what has to happen to texts and images before they are given to the graphs.
        graphs: what the model has of ``text`` (texts to vectors), ``regions`` (images to region vectors), ``image``
            (these to the image's vector) and ``match`` (text and regions to a match logit).
        machine: on which parity and speed were measured.
    """

    version: Literal[1] = 1
    format: Format
    model: str | None
    fingerprint: str
    config: dict[str, Any]
    preprocessing: dict[str, Any]
    graphs: dict[Literal["text", "regions", "image", "match"], GraphAbout]
    machine: dict[str, Any]

    def file(self, name: str) -> str:
        """File name of a graph."""
        return name + SUFFIXES[self.format]

    def write(self, folder: Path) -> None:
        """Write ``export.json``."""
        (folder / EXPORTED).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")


def is_exported(name_or_path: str | Path) -> bool:
    """Whether it is a folder of ``mmbert export``."""
    return (Path(name_or_path) / EXPORTED).is_file()


def read_about(folder: Path) -> ExportAbout:
    """Read ``export.json`` and look whether all graphs are there.

    Raises:
        CheckpointError: it is missing, damaged, of a later version, or a graph is missing.
    """
    path = folder / EXPORTED
    try:
        about = ExportAbout.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"no exported model here: {EXPORTED} is missing",
            where=str(folder),
            hint="mmbert export makes such a folder",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"damaged, or of another version: {place}: {said_by_check(first)}"
        raise CheckpointError(what, where=str(path), hint="export the model again") from error
    for name in about.graphs:
        if not (folder / about.file(name)).is_file():
            raise CheckpointError(f"{about.file(name)} is missing", where=str(folder), hint="export the model again")
    return about


def summary(about: ExportAbout) -> list[dict[str, Any]]:
    """One row per graph: precision, distance from PyTorch, and how many times as fast with one thread and with all."""
    rows = []
    for name, graph in about.graphs.items():
        row: dict[str, Any] = {"graph": name, "precision": graph.precision, "note": graph.note}
        if graph.parity is not None and graph.seconds is not None:
            row |= graph.parity
            row["times_as_fast"] = {
                threads: round(found["pytorch"] / max(found[graph.precision], 1e-6), 2)
                for threads, found in graph.seconds.items()
            }
        rows.append(row)
    return rows
