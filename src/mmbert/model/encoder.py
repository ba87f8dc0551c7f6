"""The Transformer encoder: BERT's post-LayerNorm layers on packed positions [P, H]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN, GELUActivation

from mmbert.model.attention import AttentionPlan, PackedSelfAttention, cut_plan, plan_attention
from mmbert.model.configuration import MMBertConfig
from mmbert.model.dropout import Dropout
from mmbert.model.linear import ROWS, Linear, missing_rows, with_rows
from mmbert.model.recompute import LayerStack, recomputed_activation, recomputed_norm
from mmbert.model.writing import View

NUMBERS_PER_THREAD = 1 << 20
"""Size of the widest tensor, per thread (but at least for four), when a batch is run by parts: 4 MB in fp32."""


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each followed by residual and LayerNorm (Devlin et al., 2019)."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.attention = PackedSelfAttention(
            hidden, config.num_attention_heads, float(config.attention_probs_dropout_prob)
        )
        self.attention_output = Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = Linear(hidden, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = Linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: Tensor,
        plan: AttentionPlan,
        keep_weights: list[Tensor] | None = None,
        rows: Tensor | None = None,
        keep_keys: list[Tensor] | None = None,
    ) -> Tensor:
        """[P, H] to [P, H], or to [R, H] where only the states of the R positions ``rows`` are wanted."""
        mixed = self.attention(hidden, plan, keep_weights, keep_keys)
        if rows is not None:
            mixed, hidden = mixed.index_select(0, rows), hidden.index_select(0, rows)
        return self.after_attention(mixed, hidden)

    def with_keys(
        self, hidden: Tensor, plan: AttentionPlan, keep_weights: list[Tensor] | None, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` gives, and [P, 2 * H] keys and values."""
        keys: list[Tensor] = []
        return self(hidden, plan, keep_weights, rows, keys), keys[0]

    def write(self, hidden: Tensor, view: View, number: int) -> Tensor:
        """[T, H] to [T, H] for text that is written: it sees its sequence, and what is written before it."""
        query, own = self.attention.qkv(hidden).split([hidden.shape[1], 2 * hidden.shape[1]], dim=1)
        rate = self.attention.dropout if self.training else 0.0
        mixed = view.attend(number, query, own, memory=True, heads=self.attention.heads, rate=rate)
        return self.after_attention(mixed, hidden)

    def after_attention(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        """[P, H] attention's result and [P, H] what it was made from to [P, H]: all that looks at one position."""
        hidden = recomputed_norm(self.attention_norm, self.dropout(self.attention_output(mixed)) + hidden)
        expanded = self._activate(self.intermediate(hidden))
        return recomputed_norm(self.output_norm, self.dropout(self.output(expanded)) + hidden)

    def _activate(self, values: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not isinstance(self.activation, GELUActivation):
            return recomputed_activation(self.activation, values)
        return torch.ops.aten.gelu_(values)  # in place, which nn.functional has not


@dataclass
class KeptKeys:
    """What the encoder leaves for text that continues its sequences.

    Attributes:
        layers: per layer [P, 2 * H] keys and values.
        rows: [P] row of each position in them; None where they are the same.
    """

    layers: list[Tensor] = field(default_factory=list)
    rows: Tensor | None = None


class Encoder(LayerStack):
    """A stack of layers over packed sequences."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.widest = max(3 * config.hidden_size, config.intermediate_size)

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Let torch.compile make one program of each layer's position-wise part, for any number of positions.

        Attention stays as it is: its groups of equal lengths are others in each batch, and would be compiled anew.
        """
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layer.after_attention = torch.compile(layer.after_attention, dynamic=True, backend=backend)  # type: ignore[method-assign]

    def forward(
        self,
        hidden: Tensor,
        lengths: list[int],
        cu_seqlens: Tensor,
        *,
        rows: Tensor | None = None,
        all_states: list[Tensor] | None = None,
        attentions: list[list[Tensor]] | None = None,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            hidden: [P, H] embedded positions.
            lengths, cu_seqlens: of the B sequences.
            rows: [R] positions whose last states are wanted; the last layer does most of its work on these only.
            all_states: receives the states before the first and after each layer, [P, H] in stream order.
            attentions: receives per layer a list of B weights [heads, length, length], in batch order.
            kept: receives keys and values.

        Returns:
            [P, H] last states in stream order, or [R, H] those of ``rows``.
        """
        plan = plan_attention(lengths, cu_seqlens)
        if plan.order is not None:
            hidden = hidden.index_select(0, plan.order)
        if rows is not None and plan.inverse is not None:
            rows = plan.inverse.index_select(0, rows)
        observed = all_states is not None or attentions is not None or kept is not None
        if kept is not None:
            kept.rows = plan.inverse
        if torch.is_grad_enabled() or observed or hidden.device.type != "cpu":
            hidden = self._run_in_whole_blocks(hidden, plan, rows, all_states, attentions, kept)
        else:
            hidden = self._run_by_parts(hidden, plan, rows)
        if all_states is not None:
            all_states[:-1] = [self._restore(states, plan) for states in all_states[:-1]]
            all_states[-1] = hidden if rows is not None else self._restore(hidden, plan)
        if attentions is not None:
            attentions[:] = [self._batch_order(kept, lengths) for kept in attentions]
        return hidden if rows is not None else self._restore(hidden, plan)

    def _run_in_whole_blocks(
        self,
        hidden: Tensor,
        plan: AttentionPlan,
        rows: Tensor | None,
        all_states: list[Tensor] | None,
        attentions: list[list[Tensor]] | None,
        kept: KeptKeys | None,
    ) -> Tensor:
        """:meth:`_run` on as many positions as matrix products like (see :func:`missing_rows`), unless observed."""
        extra = missing_rows(hidden) if all_states is None and attentions is None else 0
        if not extra:
            return self._run(hidden, plan, rows, all_states, attentions, kept)
        count = len(hidden) if rows is None else len(rows)
        if rows is not None:
            rows = with_rows(rows, -count % ROWS)
        return self._run(with_rows(hidden, extra), plan, rows, kept_keys=kept)[:count]

    def _run(
        self,
        hidden: Tensor,
        plan: AttentionPlan,
        rows: Tensor | None,
        all_states: list[Tensor] | None = None,
        attentions: list[list[Tensor]] | None = None,
        kept_keys: KeptKeys | None = None,
    ) -> Tensor:
        """All layers on all sequences; everything in the plan's order."""
        keys = None if kept_keys is None else kept_keys.layers
        if all_states is not None:
            all_states.append(hidden)
        for layer in self.layers:
            wanted = rows if layer is self.layers[-1] else None
            kept: list[Tensor] | None = [] if attentions is not None else None
            if keys is None:
                hidden = self.run_layer(layer.__call__, hidden, plan, kept, wanted)
            else:
                assert isinstance(layer, EncoderLayer)
                hidden, own = self.run_layer(layer.with_keys, hidden, plan, kept, wanted)
                keys.append(own)
            if all_states is not None:
                all_states.append(hidden)
            if attentions is not None and kept is not None:
                attentions.append(kept)
        return hidden

    def write(self, hidden: Tensor, view: View) -> Tensor:
        """All layers on [T, H] positions of text that is written, in the view's order."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            hidden = self.run_layer(layer.write, hidden, view, number)
        return hidden

    def _run_by_parts(self, hidden: Tensor, plan: AttentionPlan, rows: Tensor | None) -> Tensor:
        """All layers on a part of the sequences, then on the next, so that what is in between stays in the cache.

        Tensors as large as a large batch would get fresh memory from the system at every layer, which makes a position
        dearer the more there are.
        """
        limit = max(4, torch.get_num_threads()) * NUMBERS_PER_THREAD // self.widest
        results, places = [], []
        for start, end, part in cut_plan(plan, limit):
            here = None
            if rows is not None:
                places.append(((rows >= start) & (rows < end)).nonzero().squeeze(1))
                here = rows[places[-1]] - start
            results.append(self._run(hidden[start:end], part, here))
        result = torch.cat(results) if len(results) > 1 else results[0]
        if rows is None or len(results) == 1:
            return result
        return torch.empty_like(result).index_copy_(0, torch.cat(places), result)

    @staticmethod
    def _restore(hidden: Tensor, plan: AttentionPlan) -> Tensor:
        return hidden if plan.inverse is None else hidden.index_select(0, plan.inverse)

    @staticmethod
    def _batch_order(kept: list[Tensor], lengths: list[int]) -> list[Tensor]:
        """Weights come in order of length (stable); put them back in batch order."""
        in_plan = range(len(lengths))
        if [k.shape[-1] for k in kept] != lengths:
            in_plan = sorted(in_plan, key=lengths.__getitem__)  # type: ignore[assignment]
        restored: list[Tensor] = [torch.empty(0)] * len(lengths)
        for place, sequence in enumerate(in_plan):
            restored[sequence] = kept[place]
        return restored
