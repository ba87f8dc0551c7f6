"""Embeddings: region vectors from boxes and features, and the sum that enters the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmbert.model.configuration import MMBertConfig
from mmbert.model.dropout import Dropout
from mmbert.model.linear import Linear
from mmbert.model.packed import BLANK, NO_IMAGE, PackedBatch, RegionTable
from mmbert.model.table_gradient import WordTable


def box_coordinates(boxes: Tensor, sizes: Tensor, frequencies: int = 256) -> Tensor:
    """Sines and cosines of a box's centre and size (VL-BERT's coordinate feature).

    Args:
        boxes: [N, 4] x1, y1, x2, y2 in pixels.
        sizes: [N, 2] image width and height in pixels.
        frequencies: D; the original uses 256.

    Returns:
        [N, 8 * D]: for x centre, y centre, width, height (as percent of the image) D sines, then D cosines, of
        value / 1000^(d / D).
    """
    corners, far = boxes[:, :2], boxes[:, 2:]
    values = torch.cat([(corners + far) / 2 / sizes, (far - corners) / sizes], dim=1) * 100  # [N, 4]
    exponents = torch.arange(frequencies, dtype=values.dtype, device=values.device) / frequencies
    angles = values.unsqueeze(-1) / torch.pow(torch.tensor(1000.0, dtype=values.dtype), exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class RegionEmbedding(nn.Module):
    """``ReLU(Linear(Dropout(concat(coordinates, feature))))`` for each row of the extended region table.

    A masked copy has the learned mask vector in the place of its feature; a pooled row has the mean of its members'
    features (sum / (count + 1e-5), as the originals' loader divides), both with real coordinates.
    """

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.frequencies = config.coordinate_frequencies
        self.dropout = Dropout(config.region_dropout)
        self.projection = Linear(8 * config.coordinate_frequencies + config.region_feature_size, config.visual_size)
        self.mask_feature = (
            nn.Parameter(torch.zeros(config.region_feature_size)) if config.region_mask_feature else None
        )

    def initialise(self, spread: float) -> None:
        """The mask vector starts at zero."""
        if self.mask_feature is not None:
            nn.init.zeros_(self.mask_feature)

    def forward(self, table: RegionTable) -> Tensor:
        """Embed a table with features; returns [N + K + Q, V]."""
        if table.features is None:
            raise ValueError("the region table has no features: give them, or pixels and a vision encoder")
        dtype = self.projection.weight.dtype
        features = table.features.to(dtype)
        parts, box_rows = [features], []
        if table.masked_rows is not None and len(table.masked_rows):
            if self.mask_feature is None:
                raise ValueError("this model cannot mask regions; its configuration has no region_mask_feature")
            parts.append(self.mask_feature.expand(len(table.masked_rows), -1))
            box_rows.append(table.masked_rows)
        if table.pooled_box_rows is not None and len(table.pooled_box_rows):
            parts.append(self._pool(features, table))
            box_rows.append(table.pooled_box_rows)
        exact = torch.promote_types(dtype, torch.float32)  # half precision would shift percentages by up to a quarter
        coordinates = box_coordinates(table.boxes.to(exact), table.sizes.to(exact), self.frequencies).to(dtype)
        if box_rows:
            coordinates = torch.cat([coordinates, coordinates[torch.cat(box_rows)]])
        joint = torch.cat([coordinates, torch.cat(parts) if len(parts) > 1 else features], dim=1)
        return torch.relu(self.projection(self.dropout(joint)))

    @staticmethod
    def _pool(features: Tensor, table: RegionTable) -> Tensor:
        owner, rows = table.pooled_owner, table.pooled_box_rows
        assert owner is not None and rows is not None and table.pooled_members is not None
        sums = features.new_zeros(len(rows), features.shape[1]).index_add(0, owner, features[table.pooled_members])
        counts = features.new_zeros(len(rows)).index_add(0, owner, features.new_ones(len(owner)))
        return sums / (counts + 1e-5).unsqueeze(1)


class ScaledLayerNorm(nn.LayerNorm):
    """LayerNorm whose weight starts at ``initial_scale`` (0 lets vision in only as training asks for it)."""

    def __init__(self, size: int, eps: float, initial_scale: float) -> None:
        self.initial_scale = float(initial_scale)
        super().__init__(size, eps=eps)

    def reset_parameters(self) -> None:  # asked for by LayerNorm's own constructor
        self.initialise()

    def initialise(self, spread: float = 0.0) -> None:
        """The weight starts at the scale, whatever the spread of other weights."""
        nn.init.constant_(self.weight, self.initial_scale)
        nn.init.zeros_(self.bias)


class VisualInput(nn.Module):
    """Brings visual vectors to the encoder's scale: 1x1 projection where V differs from H, then LayerNorm or scalar."""

    def __init__(self, config: MMBertConfig, scale: float) -> None:
        super().__init__()
        self.projection = Linear(config.visual_size, config.hidden_size) if config.visual_projection else nn.Identity()
        self.norm = ScaledLayerNorm(config.hidden_size, config.layer_norm_eps, scale) if config.visual_ln else None
        self.scale = None if config.visual_ln else nn.Parameter(torch.tensor(float(scale)))
        self.initial_scale = float(scale)

    def initialise(self, spread: float) -> None:
        """Where there is no LayerNorm, the scalar starts at the scale."""
        if self.scale is not None:
            nn.init.constant_(self.scale, self.initial_scale)

    def forward(self, visual: Tensor) -> Tensor:
        """[rows, V] to [rows, H]."""
        projected = self.projection(visual)
        return self.norm(projected) if self.norm is not None else projected * self.scale


class Embeddings(nn.Module):
    """Linguistic + visual + position + segment, LayerNorm, dropout, for every packed position.

    Args:
        config: of the model.
        region_words: has the linguistic vectors of regions; without, ``forward`` is given one.
    """

    def __init__(self, config: MMBertConfig, *, region_words: bool = True) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.words: nn.Embedding = WordTable(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.special_words = nn.Embedding(config.num_special_words, hidden) if config.word_embedding_frozen else None
        self.positions = nn.Embedding(config.max_position_embeddings, hidden)
        self.segments = nn.Embedding(config.type_vocab_size, hidden)
        masked = region_words and config.object_mask_word_embedding
        self.region_word = nn.Parameter(torch.empty(hidden)) if region_words else None
        self.masked_region_word = nn.Parameter(torch.empty(hidden)) if masked else None
        self.end_word = nn.Parameter(torch.empty(hidden))
        text_only = config.text_only_visual_size or config.visual_size
        self.text_only_visual = nn.Parameter(torch.zeros(text_only)) if config.text_only_visual else None
        self.visual_size = config.visual_size
        self.text_visual = VisualInput(config, float(config.visual_scale_text_init))
        self.object_visual = VisualInput(config, float(config.visual_scale_object_init))
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.position_offset = config.position_padding_idx + 1
        self.positions_frozen = config.position_embedding_frozen
        self.freeze()

    def initialise(self, spread: float) -> None:
        """Vectors that stand for a region, ``[END]`` or "no image" start like words, copied words as what they copy."""
        for vector in (self.region_word, self.masked_region_word, self.end_word, self.text_only_visual):
            if vector is not None:  # (a visual vector of zeros would meet a LayerNorm whose gradient explodes)
                nn.init.normal_(vector, std=spread)
        special = self.special_words
        if special is not None and not getattr(special.weight, "_is_hf_initialized", False):
            known = min(len(special.weight), len(self.words.weight))
            special.weight[:known] = self.words.weight[:known]

    def freeze(self) -> None:
        """Turn gradients off for the tables that the configuration freezes."""
        self.words.weight.requires_grad_(self.special_words is None)
        self.positions.weight.requires_grad_(not self.positions_frozen)

    def forward(self, batch: PackedBatch, region_vectors: Tensor | None, region_word: Tensor | None = None) -> Tensor:
        """Embed a batch.

        Args:
            batch: P packed positions.
            region_vectors: [N', V] the extended region table, embedded; None in a batch of texts.
            region_word: [H] linguistic vector of regions, where these embeddings have none of their own.

        Returns:
            [P, H].
        """
        linguistic = self._linguistic(batch, self.region_word if region_word is None else region_word)
        visual = self.visual(batch, region_vectors)
        position = self.positions(batch.position_ids + self.position_offset)
        return self.dropout(self.norm(linguistic + visual + position + self.segments(batch.segment_ids)))

    def embed_text(self, token_ids: Tensor, visual: Tensor, position_ids: Tensor, segment: int) -> Tensor:
        """[T] tokens in one segment, with the [T, H] visual part of each, to [T, H]."""
        position = self.positions(position_ids + self.position_offset)
        summed = self.word_vectors(token_ids) + visual + position + self.segments.weight[segment]
        return self.dropout(self.norm(summed))

    def word_vectors(self, token_ids: Tensor) -> Tensor:
        """[T] ids to [T, H]; the first rows come from their trainable copy when the table is frozen."""
        vectors = self.words(token_ids)
        if self.special_words is None:
            return vectors
        special = token_ids < self.special_words.num_embeddings
        return torch.where(special.unsqueeze(1), self.special_words(token_ids * special), vectors)

    def _linguistic(self, batch: PackedBatch, region_word: Tensor | None) -> Tensor:
        zero = torch.zeros_like(self.end_word)
        region = zero if region_word is None else region_word
        masked = region if self.masked_region_word is None else self.masked_region_word
        markers = torch.stack([region, masked, self.end_word, zero])
        return torch.cat([self.word_vectors(batch.token_ids), markers]).index_select(0, batch.linguistic_index)

    def visual(self, batch: PackedBatch, region_vectors: Tensor | None) -> Tensor:
        """[P, H] visual part of each position; arguments as in ``forward``."""
        expected = [0 if batch.regions is None else batch.regions.extended_length, self.visual_size]
        if region_vectors is not None and list(region_vectors.shape) != expected:
            raise ValueError(
                f"region vectors are {list(region_vectors.shape)}, but the batch's extended table and visual_size "
                f"make them {expected}"
            )
        learned = self._text_only(batch)
        source = learned if region_vectors is None else torch.cat([region_vectors, learned.to(region_vectors.dtype)])
        rows, table = batch.text_visual_rows, source.shape[0] - 2
        rows = torch.where(rows == NO_IMAGE, table, torch.where(rows == BLANK, table + 1, rows))
        parts = [self.text_visual(source.index_select(0, rows))]
        if region_vectors is not None:
            parts.append(self.object_visual(region_vectors))
        parts.append(parts[0].new_zeros(1, parts[0].shape[1]))
        if batch.blank_regions:
            parts.append(self.object_visual(source.new_zeros(1, self.visual_size)))
        return torch.cat(parts).index_select(0, batch.visual_index)

    def _text_only(self, batch: PackedBatch) -> Tensor:
        """[2, V]: the visual vector of text without an image, and zeros."""
        vector = self.text_only_visual
        if vector is None:
            return self.norm.weight.new_zeros(2, self.visual_size)
        if len(vector) != self.visual_size:
            if bool((batch.text_visual_rows == NO_IMAGE).any()):
                raise ValueError(f"text alone has a vector of {len(vector)}, not of visual_size {self.visual_size}")
            return vector.new_zeros(2, self.visual_size)
        return torch.stack([vector, torch.zeros_like(vector)])
