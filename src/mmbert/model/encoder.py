"""The Transformer encoder: BERT's post-LayerNorm layers on packed positions [P, H]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN

from mmbert.model.attention import AttentionPlan, PackedSelfAttention, plan_attention
from mmbert.model.configuration import MMBertConfig
from mmbert.model.dropout import Dropout


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each followed by residual and LayerNorm (Devlin et al., 2019)."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.attention = PackedSelfAttention(
            hidden, config.num_attention_heads, float(config.attention_probs_dropout_prob)
        )
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(hidden, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, plan: AttentionPlan, keep_weights: list[Tensor] | None = None) -> Tensor:
        """[P, H] to [P, H]."""
        mixed = self.dropout(self.attention_output(self.attention(hidden, plan, keep_weights)))
        hidden = self.attention_norm(mixed + hidden)
        expanded = self.activation(self.intermediate(hidden))
        return self.output_norm(self.dropout(self.output(expanded)) + hidden)


class Encoder(nn.Module):
    """A stack of layers over packed sequences."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False  # set, with the function, by transformers' `gradient_checkpointing_enable`
        self._gradient_checkpointing_func: Callable[..., Tensor] = checkpoint

    def forward(
        self,
        hidden: Tensor,
        lengths: list[int],
        cu_seqlens: Tensor,
        *,
        all_states: list[Tensor] | None = None,
        attentions: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            hidden: [P, H] embedded positions.
            lengths, cu_seqlens: of the B sequences.
            all_states: receives the states before the first and after each layer, [P, H] in stream order.
            attentions: receives per layer a list of B weights [heads, length, length], in batch order.

        Returns:
            [P, H] last states, in stream order.
        """
        plan = plan_attention(lengths, cu_seqlens)
        if plan.order is not None:
            hidden = hidden.index_select(0, plan.order)
        if all_states is not None:
            all_states.append(self._restore(hidden, plan))
        for layer in self.layers:
            kept: list[Tensor] | None = [] if attentions is not None else None
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(layer.__call__, hidden, plan, kept)
            else:
                hidden = layer(hidden, plan, kept)
            if all_states is not None:
                all_states.append(self._restore(hidden, plan))
            if attentions is not None and kept is not None:
                attentions.append(self._batch_order(kept, lengths))
        return self._restore(hidden, plan)

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
