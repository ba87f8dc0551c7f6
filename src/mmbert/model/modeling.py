"""The public model classes, in transformers' conventions: trunk alone, and trunk with pre-training heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mmbert.errors import ConfigError
from mmbert.model.around import Around, surroundings
from mmbert.model.configuration import MMBertConfig
from mmbert.model.decoder import Decoder, join_states, packed_view
from mmbert.model.embeddings import Embeddings, RegionEmbedding
from mmbert.model.encoder import Encoder, KeptKeys
from mmbert.model.heads import EmbeddingHead, MaskedTokenHead, Pooler, ProductPooler, RegionHead, build_head
from mmbert.model.int8 import check_int8, quantised
from mmbert.model.kept import Kept
from mmbert.model.linear import Linear, missing_rows, with_rows
from mmbert.model.packed import PackedBatch, RegionTable, without_regions
from mmbert.model.vocabulary_loss import vocabulary_loss
from mmbert.plugins import load, names

if TYPE_CHECKING:
    from mmbert.vision.encoders.base import VisionEncoder

ENCODERS = "mmbert.vision.encoders"


@dataclass
class MMBertOutput(ModelOutput):
    """What the trunk returns.

    Attributes:
        last_hidden_state: [P, H], or [S, H] where only the states of S positions were asked for.
        pooled: [B, H], or None in a model without pooler.
        regions: the batch's region table with features filled in.
        region_vectors: [N', V] embedded extended table; hand it to a second pass over the same images.
        hidden_states, attentions: when asked for.
    """

    last_hidden_state: Tensor | None = None
    pooled: Tensor | None = None
    regions: Any = None
    region_vectors: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[list[Tensor], ...] | None = None


class MMBertPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading shared by all classes."""

    config_class = MMBertConfig
    config: MMBertConfig
    base_model_prefix = "trunk"
    main_input_name = "batch"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer"]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. What the configuration freezes stays frozen, although loading makes new parameters."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            if isinstance(module, MMBertModel):
                module.freeze()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start a module as BERT does, or as its own ``initialise(spread)`` says."""
        spread = self.config.initializer_range
        own = getattr(module, "initialise", None)
        if own is not None:
            own(spread)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=spread)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=spread)
            # transformers marks loaded weights, but a row of them does not carry the mark
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class MMBertModel(MMBertPreTrainedModel):
    """The trunk: region embedding, input embeddings, encoder, pooler.

    ``model(batch)`` takes a :class:`PackedBatch` and returns :class:`MMBertOutput`.

    Raises:
        ConfigError: the vision encoder cannot be made, or gives regions of another width than the configuration says.
    """

    # A trunk alone leaves the heads in a checkpoint aside, and that is no news.
    _keys_to_ignore_on_load_unexpected = [
        r"^(token_head|region_head|feature_head|match_head|embedding_head|heads|decoder)\."
    ]

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__(config)
        self.vision: VisionEncoder | None = build_vision(config.vision) if config.vision else None
        if self.vision is not None and self.vision.feature_size != config.region_feature_size:
            raise ConfigError(
                f"region_feature_size is {config.region_feature_size}, but the vision encoder gives "
                f"{self.vision.feature_size} numbers per region",
                hint=f"set region_feature_size to {self.vision.feature_size}",
            )
        self.region_embedding = RegionEmbedding(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler: Pooler | ProductPooler | None = None
        if config.with_pooler:
            self.pooler = ProductPooler(config) if config.pooling == "product" else Pooler(config)
        self.post_init()
        self.freeze()

    def freeze(self) -> None:
        """Give a gradient to what the configuration trains, and to nothing else."""
        self.embeddings.freeze()
        if self.vision is not None:
            self.vision.freeze()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embeddings.words = value

    def embed_regions(self, batch: PackedBatch) -> tuple[RegionTable | None, Tensor | None]:
        """Fill the batch's region table from its pixels where needed and embed it.

        Returns:
            the table with features, and [N', V] vectors of its extended rows (both None for texts alone).
        """
        table = batch.regions
        if table is None:
            return None, None
        if table.features is None:
            if self.vision is None or batch.pixels is None:
                raise ValueError("regions have no features: this needs pixels and a model with a vision encoder")
            features, classes = self.vision(batch.pixels, table)
            table = replace(table, features=features, classes=table.classes if classes is None else classes)
        return table, self.region_embedding(table)

    def forward(
        self,
        batch: PackedBatch,
        *,
        positions: Tensor | None = None,
        region_vectors: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> MMBertOutput:
        """Encode a packed batch.

        Args:
            batch: the sequences.
            positions: [S] flat positions whose last states are wanted, for heads that read no others: the last layer
                then does little else. None gives all. Positions of continuations are numbered behind all others.
            region_vectors: the extended region table, embedded by an earlier pass over the same images.
            output_hidden_states, output_attentions: also return each layer's states and weights.
        """
        table = batch.regions
        if self.config.ignore_regions:
            batch, region_vectors = without_regions(batch), None
        elif region_vectors is None:
            table, region_vectors = self.embed_regions(batch)
        states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[list[Tensor]] | None = [] if output_attentions else None
        kept = None if batch.continuation is None else KeptKeys()
        inside = positions if positions is None or kept is None else positions[positions < batch.num_positions]
        pooled_from = [batch.starts]
        if isinstance(self.pooler, ProductPooler):
            pooled_from.append(batch.after_text)
        hidden = self.encoder(
            self.embeddings(batch, region_vectors),
            batch.lengths,
            batch.cu_seqlens,
            rows=None if inside is None else torch.cat([*pooled_from, inside]),
            all_states=states,
            attentions=attentions,
            kept=kept,
        )
        if inside is None:
            pooled_states = [hidden.index_select(0, rows) for rows in pooled_from]
        else:
            *pooled_states, hidden = hidden.split([*(len(rows) for rows in pooled_from), len(inside)])
        if kept is not None:
            hidden = join_states(hidden, self._write(batch, region_vectors, kept), positions, batch.num_positions)
        pooled = self.pooler(*pooled_states) if self.pooler is not None else None
        return MMBertOutput(
            last_hidden_state=hidden,
            pooled=pooled,
            regions=table,
            region_vectors=region_vectors,
            hidden_states=tuple(states) if states is not None else None,
            attentions=tuple(attentions) if attentions is not None else None,
        )

    def encode(
        self,
        batch: PackedBatch,
        region_vectors: Tensor | None,
        kept: KeptKeys | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """[P, H] last states of a batch whose regions are embedded, or [S, H] those of ``positions``; continuations are
        left aside."""
        hidden = self.embeddings(batch, region_vectors)
        return self.encoder(hidden, batch.lengths, batch.cu_seqlens, kept=kept, rows=positions)

    def _write(self, batch: PackedBatch, region_vectors: Tensor | None, kept: KeptKeys) -> Tensor:
        """[T, H] last states of the continuations."""
        assert batch.continuation is not None
        written = replace(batch.continuation, regions=batch.regions)
        view = packed_view(batch, kept.layers, kept.rows)
        hidden = self.embeddings(written, region_vectors).index_select(0, view.order)
        return self.encoder.write(with_rows(hidden, missing_rows(hidden)), view).index_select(0, view.inverse)


class MMBertForPreTraining(MMBertPreTrainedModel):
    """Trunk with the heads that the configuration asks for: masked tokens, masked regions, match, embeddings, and the
    named heads of tasks. All classes with heads name their weights alike, so each loads what another has saved.

    The heads are methods on selected states; objectives (losses) live in ``mmbert.objectives``.
    """

    def __init__(self, config: MMBertConfig) -> None:
        super().__init__(config)
        self.trunk = MMBertModel(config)
        self.token_head = MaskedTokenHead(config) if config.with_mlm_head else None
        self.region_head = RegionHead(config, config.num_region_classes) if config.num_region_classes else None
        self.feature_head = RegionHead(config, config.region_feature_size) if config.region_regression else None
        self.match_head = nn.Linear(config.hidden_size, config.match_outputs) if config.match_outputs else None
        self.embedding_head = EmbeddingHead(config) if config.embedding_size else None
        self.heads = nn.ModuleDict({name: build_head(config, name) for name in config.heads or {}})
        self.decoder = Decoder(config) if config.num_decoder_layers else None
        self.post_init()
        # post_init takes the trunk's patterns over; here a head too many is a fault.
        self._keys_to_ignore_on_load_unexpected = set()

    def use_int8(self) -> None:
        """From now on multiply in 8 bits in all layers and with the word table, on a CPU and without gradients.

        Weights are quantised when they are first multiplied with, and anew when they have changed; one that 8 bits are
        too coarse for stays as it is. What reads regions, the vision encoder and the other heads stay in fp32.

        Raises:
            UsageError: this build of PyTorch has no such products.
        """
        check_int8()
        for part in (self.trunk.encoder, self.decoder):
            for module in part.modules() if part is not None else ():
                if isinstance(module, Linear):
                    module.int8 = Kept(quantised)
        if self.token_head is not None:
            self.token_head.int8 = Kept(quantised)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.trunk.set_input_embeddings(value)

    def forward(self, batch: PackedBatch, *, positions: Tensor | None = None, **kwargs: Any) -> MMBertOutput:
        """The trunk's output; see :meth:`MMBertModel.forward`.

        In a model with a decoder the states of continuations are the decoder's.
        """
        if self.decoder is None or batch.continuation is None:
            return self.trunk(batch, positions=positions, **kwargs)
        if self.config.ignore_regions:
            batch = without_regions(batch)
        output = self.trunk(replace(batch, continuation=None), **kwargs)
        states = output.last_hidden_state
        assert states is not None
        written = self.decoder(batch, states, self.trunk.embeddings, output.region_vectors)
        inside = states if positions is None else states.index_select(0, positions[positions < len(states)])
        return replace(output, last_hidden_state=join_states(inside, written, positions, len(states)))

    def token_logits(self, states: Tensor, *, train_table: bool = True) -> Tensor:
        """[M, H] states of text positions to [M, K] vocabulary logits.

        With ``train_table`` off no gradient reaches the word table from here (it does from the input side).
        """
        table = self.get_output_table()
        return self._head("token_head")(states, table if train_table else table.detach())

    def get_output_table(self) -> Tensor:
        """[K, H] word vectors that vocabulary logits are made with: the decoder's where it has its own."""
        own = self.decoder is not None and self.decoder.own
        return self.decoder.embeddings.words.weight if own else self.get_input_embeddings().weight  # type: ignore[union-attr]

    def token_loss(
        self,
        states: Tensor,
        labels: Tensor,
        weights: Tensor,
        *,
        train_table: bool = True,
        rows: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sum of the cross entropies of :meth:`token_logits` to [M] ``labels``, how many rows are right, and
        the sum without smoothing.

        The logits are never there all at once; see :func:`~mmbert.model.vocabulary_loss.vocabulary_loss`.
        """
        head, table = self._head("token_head"), self.get_output_table()
        assert isinstance(head, MaskedTokenHead)
        table = table if train_table else table.detach()
        extra = missing_rows(states)
        if extra:
            states, labels = with_rows(states, extra), with_rows(labels, extra)
            weights = torch.cat([weights, weights.new_zeros(extra)])
        return vocabulary_loss(head.transform(states), table, head.bias, labels, weights, rows, smoothing)

    def region_logits(self, states: Tensor) -> Tensor:
        """[M, H] states of regions to [M, C] class logits."""
        return self._head("region_head")(states)

    def region_features(self, states: Tensor) -> Tensor:
        """[M, H] states of regions to [M, F] predicted features."""
        return self._head("feature_head")(states)

    def match_logits(self, pooled: Tensor) -> Tensor:
        """[B, H] pooled vectors to [B] logits that text and image belong together.

        A two-output head (VL-BERT) gives the difference of its columns, the log odds of "match".
        """
        logits = self.match_columns(pooled)
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def match_columns(self, pooled: Tensor) -> Tensor:
        """[B, H] pooled vectors to [B, 1] or [B, 2] outputs of the match head as it is."""
        return self._head("match_head")(pooled)

    def head_logits(self, name: str, states: Tensor, around: Around | None = None) -> Tensor:
        """[M, H] states to the [M, outputs] of the head that the configuration calls ``name``.

        Args:
            name: of the head.
            states: that it is asked about.
            around: what stands around them, for heads that read that too; :meth:`logits_at` finds it.
        """
        head = self._named(name)
        if not getattr(head, "reads", None):
            return head(states)
        if around is None:
            raise ValueError(f"head {name!r} reads what stands around a state as well")
        return head(states, around)

    def places_read(self, name: str, batch: PackedBatch, places: Tensor) -> Tensor:
        """[S] sorted flat positions of all states that a head reads when it is asked about those at [M] ``places``."""
        around = self._around(name, batch, places)
        further = [] if around is None else [around.firsts, around.regions]
        return torch.cat([places, *(found for found in further if found is not None)]).unique()

    def logits_at(self, name: str, batch: PackedBatch, places: Tensor, states: Callable[[Tensor], Tensor]) -> Tensor:
        """[M, outputs] of a head for the states at [M] flat ``places``.

        Args:
            name: of the head.
            batch: that was encoded.
            places: flat positions.
            states: [n] flat positions to their [n, H] states; asked for none but :meth:`places_read`.
        """
        around = self._around(name, batch, places)
        if around is not None:
            regions = None if around.regions is None else states(around.regions)
            around = Around(states(around.firsts), regions, around.owners)
        return self.head_logits(name, states(places), around)

    def sequence_logits(
        self,
        name: str,
        batch: PackedBatch,
        sequences: Tensor,
        pooled: Tensor | None,
        states: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """[n, outputs] of a head for [n] sequences: of their pooled vectors, or their first states if it looks around.

        Args:
            name: of the head.
            batch: that was encoded.
            sequences: their numbers.
            pooled: [B, H] of the batch.
            states: as of :meth:`logits_at`; the places are the sequences' first tokens.
        """
        if getattr(self._named(name), "reads", ()):
            return self.logits_at(name, batch, batch.starts.index_select(0, sequences), states)
        assert pooled is not None
        return self.head_logits(name, pooled.index_select(0, sequences))

    def _around(self, name: str, batch: PackedBatch, places: Tensor) -> Around | None:
        return surroundings(batch, places, getattr(self._named(name), "reads", ()))

    def _named(self, name: str) -> nn.Module:
        if name not in self.heads:
            raise ValueError(
                f"this model has no head {name!r}; its configuration names: {', '.join(self.heads) or '-'}"
            )
        return self.heads[name]

    def _head(self, name: str) -> nn.Module:
        head = getattr(self, name)
        if head is None:
            raise ValueError(f"this model has no {name}; its configuration leaves it out")
        return head


def build_vision(options: dict[str, Any]) -> VisionEncoder:
    """Make the vision encoder ``options["kind"]``: the module of that name in ``mmbert.vision.encoders``.

    Raises:
        ConfigError: no kind, an unknown one, one that cannot run inside a model, or options that it does not take.
    """
    arguments = dict(options)
    kind = arguments.pop("kind", None)
    if kind is None:
        raise ConfigError("vision: which kind of encoder?", hint=f"kind is one of: {', '.join(names(ENCODERS))}")
    encoder: Any = load(ENCODERS, str(kind)).build(**arguments)
    if not hasattr(encoder, "regions_per_image"):  # a detector: how many regions there are depends on the image
        raise ConfigError(
            f"vision encoder {kind!r} cannot run inside a model",
            hint="extract its regions once and store them, or use grid",
        )
    return encoder


def parameter_count(model: nn.Module, millions: bool = True) -> float:
    """Number of parameters, in millions unless told otherwise."""
    count = sum(p.numel() for p in model.parameters())
    return round(count / 1e6, 2) if millions else float(count)


__all__ = [
    "MMBertForPreTraining",
    "MMBertModel",
    "MMBertOutput",
    "MMBertPreTrainedModel",
    "build_vision",
    "parameter_count",
]
