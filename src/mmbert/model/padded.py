"""The network on padded batches, as graphs of plain tensors: what exporting to other runtimes starts from.

Packed batches cut and group sequences by Python lists, which no exported graph can do. Here sequences of different
lengths are filled up to one and attention leaves out what is filled. Weights, embeddings and layers are those of the
packed network, so there is nothing to keep in step but the order of positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmbert.model.encoder import EncoderLayer
from mmbert.model.heads import ProductPooler
from mmbert.model.modeling import MMBertForPreTraining, MMBertModel
from mmbert.model.packed import END, NO_IMAGE, REGION, REGION_SEGMENT, TEXT, PackedBatch, RegionTable, without_regions
from mmbert.model.writing import joint_attention, split_heads, split_keys_values


@dataclass
class PaddedTexts:
    """Texts filled up to one length.

    Attributes:
        ids: [B, n] vocabulary ids, anything behind a text's end.
        mask: [B, n] 1 where there is text, else 0.
    """

    ids: Tensor
    mask: Tensor


@dataclass
class PaddedRegions:
    """Regions of B sequences, filled up to one number.

    Attributes:
        vectors: [N, V] embedded regions of all images.
        rows: [B, m] their rows, a sequence's whole image first; anything behind its last.
        mask: [B, m] 1 where there is a region, else 0.
    """

    vectors: Tensor
    rows: Tensor
    mask: Tensor


def padded_batch(texts: PaddedTexts, regions: PaddedRegions | None) -> tuple[PackedBatch, Tensor]:
    """B sequences of n tokens, m regions and ``[END]`` each, as a packed batch (for the embeddings alone).

    Returns:
        the batch with P = B * (n + m + 1) positions, and [B, n + m + 1] true where a position is of the sequence.
    """
    count, tokens = texts.ids.shape
    like = texts.ids
    rows = like.new_zeros(count, 0) if regions is None else regions.rows
    seen = rows if regions is None else regions.mask
    places, lengths = torch.arange(tokens, device=like.device), texts.mask.sum(1, keepdim=True)
    every, column = torch.ones_like(like[:, :1]), torch.arange(count, device=like.device)[:, None]
    total, table = count * tokens, 0 if regions is None else regions.vectors.shape[0]
    # Text is tied to the whole image, or without one to the single row of text alone.
    text_rows = like.new_full((1,), NO_IMAGE) if regions is None else rows[:, 0]
    tied = torch.zeros_like(column) if regions is None else column
    distinct = text_rows.shape[0]

    def row(text: Tensor, region: Tensor, end: Tensor) -> Tensor:
        return torch.cat([text, region, end], dim=1).flatten()

    batch = PackedBatch(
        cu_seqlens=like.new_zeros(0),
        lengths=[],
        token_ids=like.flatten(),
        linguistic_index=row(column * tokens + places, torch.full_like(rows, 0) + total, every * 0 + total + 2),
        text_visual_rows=text_rows,
        visual_index=row(tied.expand(count, tokens), rows + distinct, every * 0 + distinct + table),
        position_ids=row(places.expand(count, tokens), lengths + torch.zeros_like(rows), lengths + 1),
        segment_ids=row(
            torch.zeros_like(like), torch.full_like(rows, REGION_SEGMENT), torch.full_like(every, REGION_SEGMENT)
        ),
        kinds=row(torch.full_like(like, TEXT), torch.full_like(rows, REGION), torch.full_like(every, END)),
    )
    if regions is not None:
        nothing = regions.vectors.new_zeros(table, 4)
        batch.regions = RegionTable(nothing, nothing[:, :2])
    return batch, torch.cat([texts.mask, seen, every], dim=1) > 0


class PaddedTrunk(nn.Module):
    """Last states of chosen positions of padded sequences.

    Args:
        trunk: whose weights these are.
    """

    def __init__(self, trunk: MMBertModel) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, texts: PaddedTexts, regions: PaddedRegions | None, wanted: list[int]) -> Tensor:
        """[B, w, H] last states at the places ``wanted`` of each padded sequence."""
        batch, inside = padded_batch(texts, regions)
        vectors = None if regions is None else regions.vectors
        if self.trunk.config.ignore_regions:
            batch, vectors = without_regions(batch), None
        hidden = self.trunk.embeddings(batch, vectors)
        view = PaddedView(inside, hidden)
        layers = [layer for layer in self.trunk.encoder.layers if isinstance(layer, EncoderLayer)]
        for number, layer in enumerate(layers[:-1]):
            hidden = layer.write(hidden, view, number)
        return view.last(layers[-1], hidden, wanted)


class PaddedView:
    """Attention of each padded sequence to itself (a :class:`~mmbert.model.writing.View`).

    Args:
        inside: [B, L] true where a position is of the sequence.
        like: of the type that scores have.
    """

    def __init__(self, inside: Tensor, like: Tensor) -> None:
        self.count, self.length = inside.shape
        self.bias = (~inside).to(like.dtype)[:, None, None] * torch.finfo(like.dtype).min

    def attend(
        self, number: int, query: Tensor, own: Tensor | None, *, memory: bool, heads: int, rate: float = 0.0
    ) -> Tensor:
        """[B * k, H] queries of k positions each to all positions of their sequence; returns [B * k, H]."""
        assert own is not None
        part = (*split_keys_values(own, self.count, heads), self.bias)
        mixed = joint_attention(split_heads(query, self.count, heads), [part], rate)
        return mixed.transpose(1, 2).flatten(0, 1).flatten(1)

    def last(self, layer: EncoderLayer, hidden: Tensor, wanted: list[int]) -> Tensor:
        """The layer on [B * L, H], at the places ``wanted`` alone: [B, w, H]."""
        size = hidden.shape[1]
        query, own = layer.attention.qkv(hidden).split([size, 2 * size], dim=1)
        chosen = [self._at(values, wanted) for values in (query, hidden)]
        mixed = self.attend(0, chosen[0], own, memory=True, heads=layer.attention.heads)
        return layer.after_attention(mixed, chosen[1]).view(-1, len(wanted), size)

    def _at(self, values: Tensor, places: list[int]) -> Tensor:
        """[B * L, H] to [B * w, H]."""
        rows = values.view(self.count, self.length, -1)
        return torch.stack([rows[:, place] for place in places], dim=1).flatten(0, 1)


class Graph(nn.Module):
    """One network with plain tensors as arguments and a single result.

    Attributes:
        axes: name of each argument, in order, and the names of its axes; "" where the size is fixed.
    """

    axes: dict[str, tuple[str, ...]]


REGION_AXES: dict[str, tuple[str, ...]] = {
    "region_vectors": ("all_regions", ""),
    "region_rows": ("sequences", "regions"),
    "region_mask": ("sequences", "regions"),
}
TEXT_AXES: dict[str, tuple[str, ...]] = {
    "input_ids": ("sequences", "tokens"),
    "attention_mask": ("sequences", "tokens"),
}


class TextGraph(Graph):
    """Unit vectors of texts."""

    axes = TEXT_AXES

    def __init__(self, model: MMBertForPreTraining) -> None:
        super().__init__()
        assert model.embedding_head is not None
        self.trunk, self.head = PaddedTrunk(model.trunk), model.embedding_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, n] ids and mask to [B, D]."""
        return self.head.embed_text(self.trunk(PaddedTexts(input_ids, attention_mask), None, [0])[:, 0])


class RegionsGraph(Graph):
    """Embedded regions of images; in a model without a vision encoder, of regions with features."""

    def __init__(self, model: MMBertForPreTraining) -> None:
        super().__init__()
        self.vision, self.embedding = model.trunk.vision, model.trunk.region_embedding
        seen = {"features": ("all_regions", "")} if self.vision is None else {"pixels": ("images", "", "", "")}
        self.axes = {**seen, "boxes": ("all_regions", ""), "sizes": ("all_regions", "")}

    def forward(self, seen: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
        """[I, 3, S, S] pixels in 0..1 (or [N, F] features), [N, 4] boxes and [N, 2] image sizes to [N, V]."""
        table = RegionTable(boxes, sizes)
        features = seen if self.vision is None else self.vision(seen, table)[0]
        vectors: Tensor = self.embedding(replace(table, features=features))
        return vectors


class ImageGraph(Graph):
    """Unit vectors of images from their embedded regions.

    Args:
        ids: of the text part of an image alone, ``[CLS] [SEP]``.
    """

    axes = REGION_AXES
    ids: Tensor

    def __init__(self, model: MMBertForPreTraining, ids: Tensor) -> None:
        super().__init__()
        assert model.embedding_head is not None
        self.trunk, self.head = PaddedTrunk(model.trunk), model.embedding_head
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, region_vectors: Tensor, region_rows: Tensor, region_mask: Tensor) -> Tensor:
        """[N, V] vectors, and [B, m] rows and mask, to [B, D]."""
        ids = self.ids.expand(region_rows.shape[0], -1)
        regions = PaddedRegions(region_vectors, region_rows, region_mask)
        return self.head.embed_image(self.trunk(PaddedTexts(ids, torch.ones_like(ids)), regions, [0])[:, 0])


class MatchGraph(Graph):
    """Logits that a text and an image's regions belong together."""

    axes = {**TEXT_AXES, **REGION_AXES}

    def __init__(self, model: MMBertForPreTraining) -> None:
        super().__init__()
        self.model, self.trunk = model, PaddedTrunk(model.trunk)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        region_vectors: Tensor,
        region_rows: Tensor,
        region_mask: Tensor,
    ) -> Tensor:
        """[B, n] ids and mask, [N, V] vectors, and [B, m] rows and mask, to [B]."""
        pooler = self.model.trunk.pooler
        wanted = [0, input_ids.shape[1]] if isinstance(pooler, ProductPooler) else [0]
        regions = PaddedRegions(region_vectors, region_rows, region_mask)
        states = self.trunk(PaddedTexts(input_ids, attention_mask), regions, wanted)
        assert pooler is not None
        return self.model.match_logits(pooler(*states.unbind(1)))
