"""``ExportedMMBert``: a model whose network is a folder of graphs, which ONNX Runtime or OpenVINO runs on the CPU.

Texts and images are prepared, put in batches and counted by ``MMBert``'s own code; only what the network computes
comes from the graphs. `mmbert export` makes such folders (``mmbert.api.export``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmbert.api.export_folder import EMBEDDING_HEAD, ExportAbout, read_about
from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.api.regions import check_regions
from mmbert.api.runtimes import Array, RunGraph, open_graph, region_arguments, text_arguments
from mmbert.data.region_input import RegionInput
from mmbert.errors import CheckpointError, UsageError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.heads import EmbeddingHead
from mmbert.model.modeling import MMBertForPreTraining, build_vision
from mmbert.model.packed import PackedBatch, SequenceSpec

POSITIONS = 1024
"""Positions per pass, filled ones counted: enough for the products to be worth their threads (the starter's pairs take
11 % longer by 512), and few enough for what is in between to stay near the cores."""


class ExportedMMBert(MMBert):
    """``encode_text``, ``encode_images``, ``match`` and what builds on them, computed by exported graphs.

    Args:
        folder: of ``mmbert export``.
        about: its ``export.json``.
        threads: that compute; as many as PyTorch has unless told otherwise.

    Raises:
        CheckpointError: the folder is incomplete or damaged.
        UsageError: the runtime is not installed.
    """

    def __init__(self, folder: Path, about: ExportAbout, threads: int | None = None) -> None:
        self.about = about
        self.threads = threads or torch.get_num_threads()
        self.name_or_path = str(folder.resolve())
        try:
            self._config = MMBertConfig(**about.config)
            # The encoder says how images are prepared and where regions are; its weights are in the graph.
            vision = build_vision(self._config.vision) if self._config.vision else None
        except Exception as error:  # transformers' checks raise errors of many classes
            message = str(error).strip().splitlines()
            raise CheckpointError(
                f"damaged configuration: {' '.join(message[:2]) or type(error).__name__}",
                where=str(folder),
                hint="export the model again",
            ) from error
        self.processor = MMBertProcessor.from_pretrained(folder, self._config, vision)
        self._graphs: dict[str, RunGraph] = {
            name: open_graph(about.format, folder / about.file(name), self.threads) for name in about.graphs
        }
        self._head = _load_head(folder, self._config) if self._config.embedding_size else None

    no_network = "an exported model cannot do this; serve the PyTorch model for it (mmbert serve --backend torch)"
    """Why the service does not offer what needs PyTorch's network."""

    @property
    def backend(self) -> str:
        """What runs the graphs: ``onnx`` or ``openvino``."""
        return self.about.format

    @property
    def source(self) -> str | None:
        """Name of the model that was exported, where it had one."""
        return self.about.model

    @classmethod
    def from_exported(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        int8: bool = False,
    ) -> ExportedMMBert:
        """Load a folder of ``mmbert export``.

        Args:
            folder: of it.
            threads: that compute; as many as PyTorch has unless told otherwise.
            device, dtype, int8: for whoever asks for them; only the CPU, fp32 and graphs as they are, are possible.

        Raises:
            CheckpointError: the folder is no such one, incomplete or damaged.
            UsageError: the runtime is not installed, or another device or precision is asked for.
        """
        if device is not None and torch.device(device).type != "cpu":
            raise UsageError(f"an exported model runs on the CPU, not on {device}", hint="leave the device out")
        if int8 or dtype not in (None, torch.float32):
            hint = "mmbert export --int8 makes graphs" if int8 else "leave dtype out"
            raise UsageError("an exported model has the precision that it was exported with", hint=hint)
        return cls(Path(folder), read_about(Path(folder)), threads)

    @property
    def model(self) -> MMBertForPreTraining:  # type: ignore[override]
        """There is none.

        Raises:
            UsageError: always; whatever needs PyTorch's network ends here.
        """
        raise UsageError(
            "this needs the PyTorch network, and an exported model has encode_text, encode_images and match alone",
            hint=f"use the model that was exported: {self.about.model or 'not known'}",
        )

    @property
    def config(self) -> MMBertConfig:
        """The configuration of the model that was exported."""
        return self._config

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """fp32: what graphs take and give."""
        return torch.float32

    @cached_property
    def fingerprint(self) -> str:
        """That of the model that was exported: their vectors compare, so an index serves both."""
        return self.about.fingerprint

    def use_regions(self, images: RegionInput) -> None:
        """See :meth:`MMBert.use_regions`; not for a model with a vision encoder, whose weights are in a graph.

        Raises:
            UsageError: the model makes its own regions.
            ConfigError: the regions are of another encoder or size than the model was made for.
        """
        if self._config.vision is not None:
            raise UsageError("an exported model makes its own regions", hint="leave the region store out")
        check_regions(self._config, None, images)
        self.processor.images = images

    def _find_embedding_head(self) -> EmbeddingHead | None:
        return self._head

    def _run(self, name: str, arguments: dict[str, Array]) -> Array:
        if name not in self._graphs:
            raise UsageError(f"the exported model has no graph {name!r}", hint=f"it has: {', '.join(self._graphs)}")
        return self._graphs[name](**arguments)

    def _embed_texts(self, batch: PackedBatch) -> Tensor:
        found = [self._run("text", text_arguments(part)) for part in parts(batch.sequences)]
        return torch.from_numpy(np.concatenate(found))

    def _embed_regions(self, batch: PackedBatch) -> Tensor:
        table, pixels = batch.regions, batch.pixels
        assert table is not None
        if self._config.vision is None:
            assert table.features is not None
            seen = {"features": table.features.float().numpy()}
        else:
            assert isinstance(pixels, Tensor)
            seen = {"pixels": (pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels).numpy()}
        boxes = {"boxes": table.boxes.float().numpy(), "sizes": table.sizes.float().numpy()}
        return torch.from_numpy(self._run("regions", seen | boxes))

    def _embed_seen(self, batch: PackedBatch, region_vectors: Tensor) -> Tensor:
        vectors = region_vectors.numpy()
        found = [self._run("image", region_arguments(part, vectors)) for part in parts(batch.sequences)]
        return torch.from_numpy(np.concatenate(found))

    def _match(self, joint: list[SequenceSpec], vectors: Tensor) -> np.ndarray:
        table = vectors.numpy()
        return np.concatenate(
            [self._run("match", text_arguments(part) | region_arguments(part, table)) for part in parts(joint)]
        )


def parts(specs: Sequence[SequenceSpec], limit: int = POSITIONS) -> Iterator[list[SequenceSpec]]:
    """Neighbours that together take at most ``limit`` positions when they are filled up to one length.

    A sequence that is longer by itself is a part of its own.
    """
    part: list[SequenceSpec] = []
    longest = 0
    for spec in specs:
        length = max(longest, len(spec))
        if part and length * (len(part) + 1) > limit:
            yield part
            part, length = [], len(spec)
        part.append(spec)
        longest = length
    if part:
        yield part


def _load_head(folder: Path, config: MMBertConfig) -> EmbeddingHead:
    head = EmbeddingHead(config).eval()
    try:
        head.load_state_dict(load_file(folder / EMBEDDING_HEAD))
    except Exception as error:  # safetensors raises errors of its own
        message: Any = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot read {EMBEDDING_HEAD}: {message[0] if message else type(error).__name__}",
            where=str(folder),
            hint="export the model again",
        ) from error
    return head
