"""Exporting a model: its network as graphs for ONNX Runtime or OpenVINO, in a folder with all that a loader needs.

A graph in int8 is kept where it is measured to be faster than in fp32 on the machine that exports, and close to it.
``mmbert.api.exported`` loads what this writes.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmbert import __version__
from mmbert.api.export_folder import CARD, EMBEDDING_HEAD, FORMATS, RESULTS, ExportAbout, Format, GraphAbout
from mmbert.api.export_measures import Probe, distances
from mmbert.api.exported import ExportedMMBert
from mmbert.api.front_door import MMBert
from mmbert.api.loading import find_model
from mmbert.api.runtimes import NEEDED
from mmbert.errors import CheckpointError, UsageError
from mmbert.files import new_folder
from mmbert.model.padded import Graph, ImageGraph, MatchGraph, RegionsGraph, TextGraph
from mmbert.plugins import need_packages
from mmbert.vision.encoders.grid import fixed_sizes

OPSET = 18
"""Of ONNX; every runtime of the last years reads it."""
FURTHEST = 1e-3
"""A graph in fp32 whose results are further from PyTorch's (by the size of these) is an error, not an export."""
CLOSEST = 0.99
"""A graph in int8 whose results agree less (least cosine of vectors, correlation of logits) is not kept. The starter's
vectors of texts agree by 0.98, and that cost half a point of R@1."""
QUANTISED = ("text", "image", "match")
"""Graphs with layers of the encoder; the fourth has convolutions and the regions' embedding, which stay in fp32."""
Say = Callable[[str], None]


def export_model(
    bert: MMBert,
    out: str | Path,
    *,
    format: str = "onnx",  # noqa: A002 (the name of the option)
    int8: bool = False,
    measure: bool = True,
    say: Say = lambda message: None,
) -> ExportAbout:
    """Write a model as graphs.

    Args:
        bert: the model, in fp32 on the CPU.
        out: the new folder.
        format: ``onnx`` or ``openvino``.
        int8: quantise matrix products, where that is faster here.
        measure: compare results and speed with PyTorch's; without, graphs stay in fp32.
        say: told what is being done.

    Returns:
        what ``export.json`` says.

    Raises:
        UsageError: a package is missing, options that do not go together, a model that cannot be exported, or a folder
            that is there already.
        CheckpointError: a graph does not compute what the network does.
    """
    chosen = _checked(bert, format, int8, measure)
    graphs = _graphs(bert)
    with new_folder(Path(out)) as folder:
        about = _describe(bert, chosen, graphs)
        bert.processor.save_pretrained(folder)
        if bert.model.embedding_head is not None:
            save_file(bert.model.embedding_head.state_dict(), folder / EMBEDDING_HEAD)
        _copy_card(bert, folder)
        with tempfile.TemporaryDirectory(prefix=".int8-", dir=folder) as aside:
            for name, graph in graphs.items():
                say(f"graph {name}")
                _write_graph(bert, graph, folder / f"{name}.onnx")
                if int8 and name in QUANTISED:
                    quantise(folder / f"{name}.onnx", Path(aside) / f"{name}.onnx")
                elif int8:
                    shutil.copy(folder / f"{name}.onnx", aside)
                if chosen == "openvino":
                    _to_openvino(folder / f"{name}.onnx")
            about.write(folder)
            if measure:
                say("parity and speed")
                _measure(bert, folder, Path(aside) if int8 else None, about)
                about.write(folder)
    return about


def exported_in_passing(bert: MMBert, format: str) -> ExportedMMBert:  # noqa: A002
    """A model's graphs in fp32, of which nothing stays on the disk; arguments and errors as of :func:`export_model`."""
    with tempfile.TemporaryDirectory(prefix="mmbert-export-") as holder:
        export_model(bert, Path(holder) / "model", format=format, measure=False)
        made = ExportedMMBert.from_exported(Path(holder) / "model")
    made.name_or_path = bert.name_or_path
    return made


def _checked(bert: MMBert, format: str, int8: bool, measure: bool) -> Format:  # noqa: A002
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", hint=f"one of: {', '.join(FORMATS)}")
    if int8 and format != "onnx":
        raise UsageError("int8 graphs are made for ONNX Runtime alone", hint="--format onnx --int8")
    if int8 and not measure:
        raise UsageError("whether int8 is faster has to be measured", hint="leave one of both out")
    need_packages("export", "onnx", *NEEDED[format])
    model = bert.model
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise UsageError(f"the model is {model.dtype} on {model.device}", hint="load it in fp32 on the CPU")
    vision = model.trunk.vision
    if vision is not None and vision.takes_boxes:
        raise UsageError(
            "this model's vision encoder looks into boxes that come with an image, which graphs cannot",
            hint="models with a grid encoder without given_boxes, and models for stored regions, can be exported",
        )
    if model.embedding_head is None and model.match_head is None:
        raise UsageError("there is nothing to export: the model makes no embeddings and judges no pairs")
    return cast(Format, format)


def _graphs(bert: MMBert) -> dict[str, Graph]:
    """What this model has of the graphs, by name."""
    model = bert.model
    made: dict[str, Graph] = {"regions": RegionsGraph(model)}
    if model.embedding_head is not None:
        ids = torch.from_numpy(bert.processor.image_ids())[None]
        made = {"text": TextGraph(model), **made, "image": ImageGraph(model, ids)}
    if model.match_head is not None:
        made["match"] = MatchGraph(model)
    return {name: graph.eval() for name, graph in made.items()}


def _copy_card(bert: MMBert, folder: Path) -> None:
    """What the model says of itself goes where its graphs go: languages, licence and results."""
    if bert.name_or_path is None:
        return
    try:
        source = find_model(bert.name_or_path)
    except CheckpointError:  # gone since it was loaded
        return
    for name in (CARD, RESULTS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _describe(bert: MMBert, format: Format, graphs: dict[str, Graph]) -> ExportAbout:  # noqa: A002
    vision, tokenizer = bert.model.trunk.vision, bert.processor.tokenizer
    packages = [torch, *need_packages("export", *NEEDED[format])]
    return ExportAbout(
        format=format,
        model=bert.name_or_path,
        fingerprint=bert.fingerprint,
        config=bert.config.to_diff_dict(),
        preprocessing={
            "text": {
                "tokenizer": "tokenizer.json",
                "max_tokens": bert.processor.max_text_tokens,
                "first": tokenizer.cls_token,
                "last": tokenizer.sep_token,
            },
            "image": None
            if vision is None
            else {
                "size": vision.image_size,
                "resampling": "bicubic",
                "transparency": "white",
                "values": "0 to 1, RGB; normalised in the graph",
                "regions": vision.regions_per_image,
            },
        },
        graphs={name: GraphAbout(inputs=graph.axes) for name, graph in graphs.items()},  # type: ignore[misc]
        machine={
            "processor": platform.processor() or platform.machine(),
            "vnni": has_vnni(),
            "cores": cores(),
            "packages": {"mmbert": __version__, **{p.__name__: p.__version__ for p in packages}},
        },
    )


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_vnni() -> bool:
    """Whether the processor multiplies int8 with a wide enough sum (AVX-512 VNNI)."""
    known = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(known()) if known is not None else False


def _example(bert: MMBert, name: str) -> Tensor:
    """An argument of a graph, to trace it by; sizes that are free are greater than 1."""
    regions, size = 4, bert.config.visual_size
    if name == "pixels":
        vision = bert.model.trunk.vision
        assert vision is not None
        return torch.zeros(2, 3, vision.image_size, vision.image_size)
    if name in ("boxes", "sizes", "features"):
        count = 2 * (bert.processor.regions_per_image or regions)
        width = {"boxes": 4, "sizes": 2, "features": bert.config.region_feature_size}[name]
        return torch.ones(count, width)
    if name == "region_vectors":
        return torch.zeros(2 * regions, size)
    if name == "region_rows":
        return torch.arange(2 * regions).view(2, regions)
    if name == "region_mask":
        return torch.ones(2, regions, dtype=torch.long)
    return torch.ones(2, 5, dtype=torch.long)  # input_ids, attention_mask


def _write_graph(bert: MMBert, graph: Graph, path: Path) -> None:
    """Trace one graph with all of its named axes dynamic."""
    arguments = tuple(_example(bert, name) for name in graph.axes)
    axes = {name: {i: axis for i, axis in enumerate(names) if axis} for name, names in graph.axes.items()}
    with torch.no_grad(), fixed_sizes(), _quiet():
        torch.onnx.export(
            graph,
            arguments,
            str(path),
            input_names=list(graph.axes),
            output_names=["result"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def quantise(source: Path, out: Path) -> None:
    """Matrix products by constants in int8, the other factor quantised at run time by its own range.

    Weights have a scale per column. Without VNNI they have 7 bits, since sums of two products have 16 there.
    Embeddings stay as they are: visual vectors stand behind every position of a text, so that an error in them is in
    all of them (the starter's vectors of texts keep a cosine of 0.99 to those in fp32, instead of 0.94).
    """
    onnx, quantization = need_packages("export", "onnx", "onnxruntime.quantization")
    names = [node.name for node in onnx.load(str(source)).graph.node if "/embeddings/" in node.name]
    with _quiet():
        quantization.quantize_dynamic(
            source,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[*names, *(f"{name}_MatMul" for name in names)],  # what it makes of a Gemm
            per_channel=True,
            reduce_range=not has_vnni(),
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def _to_openvino(path: Path) -> None:
    """Write the graph in OpenVINO's format beside it, in fp32, and remove it."""
    (openvino,) = need_packages("export", "openvino")
    openvino.save_model(openvino.Core().read_model(str(path)), str(path.with_suffix(".xml")), compress_to_fp16=False)
    path.unlink()


def _measure(bert: MMBert, folder: Path, int8: Path | None, about: ExportAbout) -> None:
    """Fill parity and speed in; move graphs of ``int8`` into the folder where they are better."""
    probe = Probe(bert)
    models: dict[str, Callable[[int], MMBert]] = {"fp32": lambda threads: ExportedMMBert(folder, about, threads)}
    if int8 is not None:
        shutil.copytree(folder, int8, dirs_exist_ok=True, ignore=shutil.ignore_patterns(int8.name, "*.onnx"))
        models["int8"] = lambda threads: ExportedMMBert(int8, about, threads)
    results = probe.results(bert, {name: make(1) for name, make in models.items()}, list(about.graphs))
    times = {str(n): probe.seconds(bert, models, list(about.graphs), n) for n in sorted({1, cores()})}
    for name, graph in about.graphs.items():
        graph.seconds = {threads: found[name] for threads, found in times.items()}
        graph.parity = distances(results["pytorch"][name], results["fp32"][name])
        if graph.parity["relative"] > FURTHEST:
            raise CheckpointError(
                f"the graph {name} does not compute what the network does (off by {graph.parity['max_abs']:.2g})",
                where=about.model,
                hint="please report this with the model's config.json",
            )
        if int8 is None:
            continue
        if name not in QUANTISED:
            graph.note = "kept in fp32: convolutions and embeddings are not quantised"
            continue
        found = distances(results["pytorch"][name], results["int8"][name])
        if any(t["int8"] >= t["fp32"] for t in graph.seconds.values()):
            graph.note = "kept in fp32: int8 was slower here"
        elif found["agreement"] < CLOSEST:
            graph.note = f"kept in fp32: int8 agrees by {found['agreement']:.3f} only"
        else:
            graph.precision, graph.parity = "int8", found
            (int8 / about.file(name)).replace(folder / about.file(name))


@contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of the exporter and the quantiser about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
