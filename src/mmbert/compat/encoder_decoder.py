"""MM-BERT's encoder-decoder exactly as it ran: padded, and with masks that hide nothing.

Its decoder reads a whole second stream, ``target | regions | [END]``, and the additive mask (0 or -10000) is handed to
it as if it were a mask of ones and zeros. So every real key gets -10000 and nothing is causal, padded keys behind a
query are attended to like real ones, and cross attention sees padding too. Checkpoints were trained that way: translate
with them here. :class:`~mmbert.model.conditional_generation.MMBertForConditionalGeneration` has none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbert.model.embeddings import Embeddings
from mmbert.model.masked_generation import Generated, generate_at_mask
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, RegionTable, SequenceSpec, pack

HIDDEN = -10000.0
"""What the originals add to the score of a key that is not to be seen."""


@dataclass
class PaddedStream:
    """One side's padded states.

    Attributes:
        embedded: [B, L, H] before the first layer.
        layers: [B, L, H] after each.
    """

    embedded: Tensor
    layers: list[Tensor] = field(default_factory=list)

    @property
    def last(self) -> Tensor:
        """[B, L, H]."""
        return self.layers[-1]


@dataclass
class OriginalEncoderDecoder:
    """A converted encoder-decoder, run as the original ran.

    Attributes:
        model: with a decoder that has its own embeddings.
    """

    model: MMBertForPreTraining

    def encode(self, source: PackedBatch, region_vectors: Tensor | None) -> PaddedStream:
        """The source and its regions; padding passes through the layers, hidden as a key."""
        trunk = self.model.trunk
        padded, real = _padded(trunk.embeddings, source, trunk.embeddings(source, region_vectors))
        stream = PaddedStream(padded)
        bias = (1 - real.to(padded.dtype))[:, None, None] * HIDDEN
        hidden = padded
        for layer in trunk.encoder.layers:
            query, key, value = layer.attention.qkv(hidden).chunk(3, -1)  # type: ignore[union-attr, operator]
            heads = layer.attention.heads  # type: ignore[union-attr]
            mixed = _attention(query, key, value, bias, heads)  # type: ignore[arg-type]
            hidden = layer.attention_norm(layer.attention_output(mixed) + hidden)  # type: ignore[operator]
            hidden = _feed_forward(layer, hidden)
            stream.layers.append(hidden)
        return stream

    def decode(self, target: PackedBatch, source: Tensor, region_vectors: Tensor | None) -> PaddedStream:
        """The second stream.

        Args:
            target: ``target | regions | [END]``; regions are those of the source.
            source: [B, L, H] the encoder's last states.
            region_vectors: [N', V] the extended region table, embedded.
        """
        decoder = self.model.decoder
        assert decoder is not None
        tables = decoder.embeddings
        packed = tables(target, region_vectors, self.model.trunk.embeddings.region_word)
        padded, real = _padded(tables, target, packed)
        stream = PaddedStream(padded)
        columns = torch.arange(padded.shape[1], device=padded.device)
        hidden = decoder.add_positions(padded, columns)
        additive = (1 - real.to(padded.dtype))[:, None] * HIDDEN
        causal = (columns[None] <= columns[:, None]).to(padded.dtype)
        bias = ((1 - causal * additive) * HIDDEN)[:, None]
        for layer in decoder.layers:
            query, key, value = layer.qkv(hidden).chunk(3, -1)  # type: ignore[operator]
            heads: Any = layer.heads
            mixed = _attention(query, key, value, bias, heads)
            hidden = layer.attention_norm(layer.attention_output(mixed) + hidden)  # type: ignore[operator]
            key, value = layer.cross_keys_values(source).chunk(2, -1)  # type: ignore[operator]
            mixed = _attention(layer.cross_query(hidden), key, value, None, heads)  # type: ignore[operator]
            hidden = layer.cross_norm(layer.cross_output(mixed) + hidden)  # type: ignore[operator]
            hidden = _feed_forward(layer, hidden)
            stream.layers.append(hidden)
        return stream

    @torch.inference_mode()
    def generate(
        self, sources: Sequence[SequenceSpec], *, regions: RegionTable | None, cls_id: int, mask_id: int, sep_id: int,
        stop_id: int, keep_finished: bool = False, keep_logits: int = 0, max_steps: int = 49,
    ) -> Generated:  # fmt: skip
        """Greedy translation, as the original's: the best token at ``[MASK]`` of the second stream, again and again.

        Args:
            sources: ``[CLS] source [SEP]`` with regions.
            regions: the table that they refer to.
            cls_id, mask_id, sep_id, stop_id: special tokens.
            keep_finished, keep_logits, max_steps: as of :func:`~mmbert.model.masked_generation.generate_at_mask`.
        """
        device = self.model.device
        source = pack(sources, regions=regions, device=device)
        _, vectors = self.model.trunk.embed_regions(source)
        states = self.encode(source, vectors).last

        def read(specs: list[SequenceSpec], places: list[int], rows: list[int]) -> Tensor:
            batch = pack(specs, regions=regions, device=device)
            decoded = self.decode(batch, states[rows], vectors).last
            return self.model.token_logits(decoded[torch.arange(len(rows)), torch.tensor(places)])

        prompts = [
            SequenceSpec(torch.tensor([cls_id]).numpy(), 0, spec.text_rows, spec.region_rows) for spec in sources
        ]
        return generate_at_mask(
            self.model, prompts, mask_id=mask_id, sep_id=sep_id, stop_id=stop_id, behind_first_mask=stop_id,
            keep_finished=keep_finished, keep_logits=keep_logits, max_steps=max_steps, read=read,
        )  # fmt: skip


def _padded(tables: Embeddings, batch: PackedBatch, packed: Tensor) -> tuple[Tensor, Tensor]:
    """[B, L, H] embeddings with padding (a zero vector, its column's position, segment 0), and [B, L] what is real."""
    width = max(batch.lengths)
    columns = torch.arange(width, device=packed.device)
    filling = tables.norm(tables.positions(columns + tables.position_offset) + tables.segments.weight[0])
    real = columns < torch.tensor(batch.lengths, device=packed.device)[:, None]
    rows = real.new_zeros(real.shape, dtype=torch.long)
    rows[real] = torch.arange(len(packed), device=packed.device)
    return torch.where(real[..., None], packed[rows], filling), real


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """[B, n, H] queries and [B, k, H] keys and values; the mask is added after scaling, as rounding depends on it."""

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (heads, -1)).transpose(1, 2)

    scores = split(query) @ split(key).transpose(-1, -2) / (query.shape[-1] // heads) ** 0.5
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    return (weights @ split(value)).transpose(1, 2).flatten(2)


def _feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    return layer.output_norm(layer.output(layer.activation(layer.intermediate(hidden))) + hidden)
