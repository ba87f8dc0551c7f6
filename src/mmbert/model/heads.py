"""Heads: small networks on selected states. Each sees only the rows it is asked about."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmbert.errors import ConfigError
from mmbert.model.around import FIRSTS, REGIONS, Around
from mmbert.model.configuration import MMBertConfig
from mmbert.model.dropout import Dropout
from mmbert.model.int8 import Copy
from mmbert.model.linear import linear


def _exact(values: Tensor) -> Tensor:
    """At least in single precision, for norms."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class MaskedTokenHead(nn.Module):
    """Vocabulary logits: dense, activation, LayerNorm, then the word table as decoder (tied) plus a bias."""

    int8: Copy | None = None
    """Set: without gradients the product with the word table is in 8 bits."""

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def initialise(self, spread: float) -> None:
        """The bias starts at zero."""
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor, word_table: Tensor) -> Tensor:
        """[M, H] selected states and the [K, H] word table to [M, K] logits."""
        return linear(self.transform(states), word_table, self.bias, self.int8)

    def transform(self, states: Tensor) -> Tensor:
        """[M, H] selected states to the [M, H] vectors that are compared with the word table."""
        transformed: Tensor = self.norm(self.activation(self.dense(states)))
        return transformed


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


class ProductPooler(nn.Module):
    """Elementwise product of two unit vectors, one made of the first state and one of the whole image's state.

    A linear head on it sees how far text and image agree from the first step on, which one on the first state alone
    takes long to learn (Lu et al., 2019, ViLBERT, multiply the same two states).
    """

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.text = nn.Linear(config.hidden_size, config.hidden_size)
        self.image = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_states: Tensor, image_states: Tensor) -> Tensor:
        """[B, H] first states and [B, H] states of the first region to [B, H], times sqrt(H)."""
        text = nn.functional.normalize(_exact(self.text(first_states)), dim=-1)
        image = nn.functional.normalize(_exact(self.image(image_states)), dim=-1)
        return text * image * text.shape[1] ** 0.5


class EmbeddingHead(nn.Module):
    """Unit vectors of texts and of images from their first states, and the contrastive loss's logit scale.

    ``query_bank`` [n, D] are vectors of typical queries (``config.query_bank`` of them).
    """

    query_bank: Tensor

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__()
        self.text = nn.Linear(config.hidden_size, config.embedding_size)
        self.image = nn.Linear(config.hidden_size, config.embedding_size)
        self.initial_scale = float(config.logit_scale_init)
        self.log_scale = nn.Parameter(torch.tensor(self.initial_scale))
        bank = torch.zeros(config.query_bank, config.embedding_size)
        self.register_buffer("query_bank", bank, persistent=bool(config.query_bank))

    def initialise(self, spread: float) -> None:
        """The logit scale starts where the configuration says."""
        nn.init.constant_(self.log_scale, self.initial_scale)

    @property
    def scale(self) -> Tensor:
        """exp of the learned log scale, at most 100 (Radford et al., 2021)."""
        return self.log_scale.clamp(max=4.6052).exp()

    def embed_text(self, first_states: Tensor) -> Tensor:
        """[n, H] to [n, D] unit rows."""
        return nn.functional.normalize(_exact(self.text(first_states)), dim=-1)

    def embed_image(self, first_states: Tensor) -> Tensor:
        """[n, H] to [n, D] unit rows."""
        return nn.functional.normalize(_exact(self.image(first_states)), dim=-1)

    def hubness(self, images: Tensor) -> Tensor:
        """[n, D] vectors of images to [n]: log mean over the bank of exp(scale * cosine); 0 without a bank.

        An image with much of it is near to whatever is asked (Radovanovic et al., 2010, "Hubs in space"); taking it off
        is the inverted softmax of Smith et al., 2017, over a bank of queries (Bogolin et al., 2022, QB-Norm).
        """
        if not len(self.query_bank):
            return images.new_zeros(len(images))
        logits = self.scale * images @ self.query_bank.to(images.dtype).T
        return logits.logsumexp(1) - math.log(len(self.query_bank))


class LinearHead(nn.Module):
    """Dropout, linear; on states, or on what is ``input_size`` wide (region features)."""

    def __init__(self, config: MMBertConfig, outputs: int, dropout: float = 0.0, input_size: int | None = None) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.predictor = nn.Linear(input_size or config.hidden_size, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """[M, H] to [M, outputs]."""
        return self.predictor(self.dropout(states))


class TwoLayerHead(nn.Module):
    """Dropout, linear, ReLU, dropout, linear (VL-BERT's "2fc")."""

    def __init__(self, config: MMBertConfig, outputs: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = nn.Linear(config.hidden_size, hidden_size)
        self.predictor = nn.Linear(hidden_size, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """[M, H] to [M, outputs]."""
        return self.predictor(self.dropout(torch.relu(self.dense(self.dropout(states)))))


class TransformHead(nn.Module):
    """Dense, activation, LayerNorm where ``norm`` says so, dropout, linear: as the pre-training heads are."""

    def __init__(self, config: MMBertConfig, outputs: int, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if norm else nn.Identity()
        self.dropout = Dropout(dropout)
        self.predictor = nn.Linear(config.hidden_size, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """[M, H] to [M, outputs]."""
        return self.predictor(self.dropout(self.norm(self.activation(self.dense(states)))))


class ProductHead(ProductPooler):
    """Linear on the product of a region's state with the first state of its sequence, as :class:`ProductPooler` has it.

    A region is told from others by how far it agrees with the text, from the first step on; it can start as the pooler
    and the match head of a model that has learned which texts and images belong together.
    """

    reads = frozenset({FIRSTS})
    """What ``forward`` wants of :class:`Around`."""

    def __init__(self, config: MMBertConfig, outputs: int, dropout: float = 0.0) -> None:
        super().__init__(config)
        self.dropout = Dropout(dropout)
        self.predictor = nn.Linear(config.hidden_size, outputs)

    def forward(self, states: Tensor, around: Around) -> Tensor:  # type: ignore[override]
        """[M, H] states and what stands around them to [M, outputs]."""
        product = super().forward(around.firsts, states)
        return self.predictor(self.dropout(product.to(self.predictor.weight.dtype)))


class PointingHead(nn.Module):
    """Answers by pointing at regions: which are meant, what the one meant is, and how many there are.

    ``points`` says how far each region is meant (as in grounding). The regions' vectors, averaged by the softmax of
    that (attentional reduction: Yu et al., 2019, MCAN), are compared with a vector for each output; how many regions
    are meant (the sum of their probabilities: Zhang et al., 2018) and the state itself are looked at by a layer beside.
    From the answers alone a network learns slowly to look where a question says; ``points`` can start as a head that
    has learned it (``model.init.heads``).
    """

    reads = frozenset({FIRSTS, REGIONS})
    COUNTED = 64
    """Width of the layer on the numbers."""

    def __init__(self, config: MMBertConfig, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.points = ProductHead(config, 1)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.predictor = nn.Linear(config.hidden_size, outputs)
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.counted = nn.Linear(3, self.COUNTED)
        self.dropout = Dropout(dropout)
        self.further = nn.Linear(self.COUNTED + config.hidden_size, outputs)

    def forward(self, states: Tensor, around: Around) -> Tensor:
        """[M, H] states and what stands around them to [M, outputs]."""
        regions, owners = around.regions, around.owners
        assert regions is not None
        assert owners is not None
        dtype = self.predictor.weight.dtype
        meant = _exact(self.points(regions, Around(around.firsts.index_select(0, owners))).squeeze(1))
        values = nn.functional.normalize(_exact(self.value(regions)), dim=-1)
        highest, shares = _softmax(meant, owners, len(states))
        pointed = values.new_zeros(len(states), values.shape[1]).index_add(0, owners, shares[:, None] * values)
        number = meant.new_zeros(len(states)).index_add(0, owners, meant.sigmoid())
        counted = torch.stack([number, number.log1p(), highest.sigmoid()], 1)
        beside = torch.cat([torch.relu(self.counted(counted.to(dtype))), states.to(dtype)], 1)
        named = self.log_scale.exp() * _exact(self.predictor(pointed.to(dtype)))
        return named + _exact(self.further(self.dropout(beside)))


def _softmax(logits: Tensor, owners: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest logit of each owner [count] (the least number where it has none), and the softmax [R] within each."""
    highest = logits.new_full((count,), torch.finfo(logits.dtype).min).scatter_reduce(0, owners, logits, "amax")
    powers = (logits - highest.detach().index_select(0, owners)).exp()
    sums = powers.new_zeros(count).index_add(0, owners, powers)
    return highest, powers / sums.index_select(0, owners)


HEAD_KINDS: dict[str, Callable[..., nn.Module]] = {
    "linear": LinearHead,
    "two_layer": TwoLayerHead,
    "transform": TransformHead,
    "product": ProductHead,
    "pointing": PointingHead,
}
"""What ``kind`` may be in the options of a named head."""
MEANINGS = ("labels", "lexicon", "answers", "neighbours", "prior", "exclusive")
"""Options that say what a head's outputs mean and how its texts are read; they change nothing of the network."""


FLAGS = ("norm", "exclusive")
"""Keys of a head's options that are true or false."""


def build_head(config: MMBertConfig, name: str) -> nn.Module:
    """Make the head that ``config.heads`` calls ``name``.

    Raises:
        ConfigError: no kind, an unknown one, or options or values that it does not take.
    """
    options = {key: value for key, value in (config.heads or {})[name].items() if key not in MEANINGS}
    for key in FLAGS:
        value = (config.heads or {})[name].get(key, False)
        if not isinstance(value, bool):  # a word, such as "no", would count as true
            raise ConfigError(f"head {name!r}: {key} is true or false, not {value!r}")
    kind = options.pop("kind", None)
    if kind not in HEAD_KINDS:
        raise ConfigError(f"head {name!r}: unknown kind {kind!r}", hint=f"kind is one of: {', '.join(HEAD_KINDS)}")
    try:
        return HEAD_KINDS[kind](config, **options)
    except TypeError as error:
        raise ConfigError(f"head {name!r}: {error}") from error


def is_exclusive(config: MMBertConfig, name: str) -> bool:
    """Whether one output of the head is right and no other (``exclusive``), so that probabilities add up to 1."""
    return bool((config.heads or {}).get(name, {}).get("exclusive", False))
