"""Graphs of an exported model, run by ONNX Runtime or OpenVINO on the CPU: arrays in, one array out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mmbert.errors import CheckpointError
from mmbert.model.packed import SequenceSpec
from mmbert.plugins import need_packages

Array: TypeAlias = np.ndarray[Any, Any]
RunGraph: TypeAlias = Callable[..., Array]
"""Takes a graph's arguments by name and gives its result."""
NEEDED = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
"""Packages that run each format."""


def open_graph(kind: str, path: Path, threads: int) -> RunGraph:
    """Load a graph.

    Args:
        kind: ``onnx`` or ``openvino``.
        path: its file.
        threads: that compute.

    Raises:
        UsageError: the runtime is not installed.
        CheckpointError: the file is damaged.
    """
    opened = {"onnx": _open_onnx, "openvino": _open_openvino}[kind]
    (package,) = need_packages("export", *NEEDED[kind])
    try:
        return opened(package, path, threads)
    except Exception as error:  # runtimes raise errors of many classes
        message = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot load the graph: {message[0] if message else type(error).__name__}",
            where=str(path),
            hint="export the model again",
        ) from error


def _open_onnx(package: Any, path: Path, threads: int) -> RunGraph:
    options = package.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Between graphs PyTorch's threads open images and put batches together. ONNX Runtime's would go on asking for work
    # meanwhile on the same cores: 16 images to vectors took 72 ms instead of 48.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(**arguments: Array) -> Array:
        found: Array = session.run(None, arguments)[0]
        return found

    return run


def _open_openvino(package: Any, path: Path, threads: int) -> RunGraph:
    # Without the last, OpenVINO computes in bf16 where the processor has it.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = package.Core().compile_model(str(path), "CPU", options)

    def run(**arguments: Array) -> Array:
        return np.array(compiled(arguments)[0])

    return run


def filled(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Rows of numbers of different lengths as [B, longest] (zeros behind), and [B, longest] 1 where there was one."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = np.zeros(mask.shape, dtype=np.int64)
    values[mask] = np.concatenate(rows)
    return values, mask.astype(np.int64)


def text_arguments(specs: Sequence[SequenceSpec]) -> dict[str, Array]:
    """The texts of sequences, as graphs take them."""
    ids, mask = filled([spec.token_ids for spec in specs])
    return {"input_ids": ids, "attention_mask": mask}


def region_arguments(specs: Sequence[SequenceSpec], vectors: Array) -> dict[str, Array]:
    """The regions of sequences, which are rows of ``vectors`` [N, V], as graphs take them: with these rows alone."""
    rows, mask = filled([spec.region_rows for spec in specs])
    used, place = np.unique(rows, return_inverse=True)
    return {"region_vectors": vectors[used], "region_rows": place.reshape(rows.shape), "region_mask": mask}
