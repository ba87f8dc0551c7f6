"""Heads: small networks on selected states. Each sees only the rows it is asked about."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmbert.model.configuration import MMBertConfig


class MaskedTokenHead(nn.Module):
    """Vocabulary logits: dense, activation, LayerNorm, then the word table as decoder (tied) plus a bias."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_table: Tensor) -> Tensor:
        """[M, H] selected states and the [K, H] word table to [M, K] logits."""
        transformed = self.norm(self.activation(self.dense(states)))
        return nn.functional.linear(transformed, word_table, self.bias)


class RegionHead(nn.Module):
    """Logits over region classes, or the region's feature: dense, activation, linear (no LayerNorm)."""

    def __init__(self, config: MMBertConfig, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.predictor = nn.Linear(config.hidden_size, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """[M, H] to [M, outputs]."""
        return self.predictor(self.activation(self.dense(states)))


class Pooler(nn.Module):
    """tanh(Linear(first state)) of each sequence."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_states: Tensor) -> Tensor:
        """[B, H] to [B, H]."""
        return torch.tanh(self.dense(first_states))


class EmbeddingHead(nn.Module):
    """Unit vectors of texts and of images from their first states, and the contrastive loss's logit scale."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.text = nn.Linear(config.hidden_size, config.embedding_size)
        self.image = nn.Linear(config.hidden_size, config.embedding_size)
        self.log_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))

    @property
    def scale(self) -> Tensor:
        """exp of the learned log scale, at most 100 (Radford et al., 2021)."""
        return self.log_scale.clamp(max=4.6052).exp()

    def embed_text(self, first_states: Tensor) -> Tensor:
        """[n, H] to [n, D] unit rows."""
        return nn.functional.normalize(self.text(first_states).float(), dim=-1)

    def embed_image(self, first_states: Tensor) -> Tensor:
        """[n, H] to [n, D] unit rows."""
        return nn.functional.normalize(self.image(first_states).float(), dim=-1)
