"""A decoder with cross attention: writes text while it looks at the trunk's states (Vaswani et al., 2017).

Its layers are BERT's (post-LayerNorm), each with causal self-attention, attention to the states of the sequence, and
feed-forward. In: a packed batch with continuations and the trunk's states. Out: states of the written positions.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmbert.model.configuration import MMBertConfig
from mmbert.model.dropout import Dropout
from mmbert.model.embeddings import Embeddings
from mmbert.model.linear import Linear, missing_rows, with_rows
from mmbert.model.packed import PackedBatch
from mmbert.model.recompute import LayerStack, recomputed_activation, recomputed_norm
from mmbert.model.writing import PackedView, View


class DecoderLayer(nn.Module):
    """Self-attention, cross attention, feed-forward, each followed by residual and LayerNorm."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = float(config.attention_probs_dropout_prob)
        self.qkv = Linear(hidden, 3 * hidden)
        self.attention_output = Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.cross_query = Linear(hidden, hidden)
        self.cross_keys_values = Linear(hidden, 2 * hidden)
        self.cross_output = Linear(hidden, hidden)
        self.cross_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = Linear(hidden, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = Linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, view: View, number: int) -> Tensor:
        """[T, H] to [T, H], in the view's order."""
        rate = self.attention_dropout if self.training else 0.0
        query, own = self.qkv(hidden).split([hidden.shape[1], 2 * hidden.shape[1]], dim=1)
        mixed = view.attend(number, query, own, memory=False, heads=self.heads, rate=rate)
        hidden = recomputed_norm(self.attention_norm, self.dropout(self.attention_output(mixed)) + hidden)
        mixed = view.attend(number, self.cross_query(hidden), None, memory=True, heads=self.heads, rate=rate)
        hidden = recomputed_norm(self.cross_norm, self.dropout(self.cross_output(mixed)) + hidden)
        expanded = recomputed_activation(self.activation, self.intermediate(hidden))
        return recomputed_norm(self.output_norm, self.dropout(self.output(expanded)) + hidden)


class Decoder(LayerStack):
    """The layers; with ``decoder_own_embeddings`` also tables, and positions and a segment that are added again."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.own = config.decoder_own_embeddings
        if not self.own:
            return
        plain = copy.copy(config)
        plain.text_only_visual = plain.word_embedding_frozen = False
        self.embeddings = Embeddings(plain, region_words=False)
        self.positions = nn.Embedding(config.max_position_embeddings, hidden)
        self.segments = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def tables(self, shared: Embeddings) -> Embeddings:
        """The embeddings that written text is looked up in: the decoder's own, or the trunk's."""
        return self.embeddings if self.own else shared

    def add_positions(self, embedded: Tensor, position_ids: Tensor) -> Tensor:
        """The second sum of a decoder with its own embeddings; in others nothing is done.

        Args:
            embedded: [..., H].
            position_ids: [...] places within the written text, from 0.
        """
        if not self.own:
            return embedded
        summed = embedded + self.positions(position_ids) + self.segments.weight[0]
        return self.dropout(self.norm(summed))

    def memory(self, states: Tensor) -> list[Tensor]:
        """[M, H] states of sequences to [M', 2 * H] keys and values per layer; rows from M on are padding (see
        :func:`~mmbert.model.linear.missing_rows`)."""
        states = with_rows(states, missing_rows(states))
        return [layer.cross_keys_values(states) for layer in self.layers]  # type: ignore[operator]

    def forward(
        self, batch: PackedBatch, states: Tensor, shared: Embeddings, region_vectors: Tensor | None = None
    ) -> Tensor:
        """Decode the continuations of a batch.

        Args:
            batch: P positions and their continuations of T positions.
            states: [P, H] the trunk's.
            shared: the trunk's embeddings.
            region_vectors: [N', V] the extended region table, embedded.

        Returns:
            [T, H] in stream order.
        """
        assert batch.continuation is not None
        written = replace(batch.continuation, regions=batch.regions)
        embedded = self.tables(shared)(written, region_vectors)
        view = packed_view(batch, self.memory(states), None)
        hidden = self.add_positions(embedded, written.position_ids).index_select(0, view.order)
        return self.run(with_rows(hidden, missing_rows(hidden)), view).index_select(0, view.inverse)

    def run(self, hidden: Tensor, view: View) -> Tensor:
        """All layers on [T, H], in the view's order."""
        for number, layer in enumerate(self.layers):
            hidden = self.run_layer(layer.__call__, hidden, view, number)
        return hidden


def packed_view(batch: PackedBatch, memory: list[Tensor], rows: Tensor | None) -> PackedView:
    """The view of a batch's continuations; ``memory`` and ``rows`` as :class:`PackedView` has them."""
    assert batch.continuation is not None
    starts = [0]
    for length in batch.lengths:
        starts.append(starts[-1] + length)
    return PackedView(
        batch.continuation.lengths,
        [starts[i] for i in batch.continued],
        [batch.lengths[i] for i in batch.continued],
        memory,
        rows,
        batch.device,
    )


def join_states(states: Tensor, written: Tensor, positions: Tensor | None, count: int) -> Tensor:
    """States of sequences and of what continues them, by flat position (written ones are numbered behind all others).

    Args:
        states: [P, H], or those of the ``positions`` below P.
        written: [T, H] of all continuations.
        positions: [S] those that are wanted; None takes all.
        count: P.
    """
    if positions is None:
        return torch.cat([states, written])
    inside = positions < count
    found = torch.cat([states, written.index_select(0, positions[~inside] - count)])
    order = torch.cat([inside.nonzero().squeeze(1), (~inside).nonzero().squeeze(1)])
    return found.index_select(0, order.argsort())
