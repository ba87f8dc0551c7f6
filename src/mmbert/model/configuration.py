"""Configuration of the network: every size and option of the VL-BERT / MM-BERT family."""

# No `from __future__ import annotations` here: `strict` checks values by the annotations themselves.

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class MMBertConfig(PreTrainedConfig):
    """Sizes and options of one model.

    Args:
        vocab_size: rows of the word embedding.
        hidden_size: width H of every position.
        num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: the encoder's, as in BERT.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout of states and of attention weights.
        max_position_embeddings: rows of the position table; a sequence may use at most that many
            minus ``position_padding_idx + 1`` distinct positions.
        type_vocab_size: segment rows (0 and 1 text, 2 regions and ``[END]``).
        position_padding_idx: ``position_padding_idx + 1`` is added to each position id
            (BERT: -1, so nothing; RoBERTa: 1).
        visual_size: width V of the visual vectors that the region embedding makes; a 1x1 projection V to H
            is used when it differs from ``hidden_size``.
        visual_ln: visual vectors pass a LayerNorm before they are added (else they are multiplied by a scalar).
        visual_scale_text_init, visual_scale_object_init: initial LayerNorm weight or scalar.
        region_feature_size: numbers per region that the vision encoder or detector gives (RoI feature).
        coordinate_frequencies: sines and cosines per box coordinate; the coordinate vector has
            ``4 * 2 * coordinate_frequencies`` numbers (2,048 in the published networks).
        region_dropout: dropout before the region embedding's linear layer.
        text_only_visual: text without an image has a learned visual vector; else the zero vector.
        text_only_visual_size: width of that vector where it is not ``visual_size`` (such a network cannot read text
            alone).
        ignore_regions: regions stay in the sequence as zero vectors, and text has the visual vector of text alone
            ("no vision" of MM-BERT's matching and lexical translation: only the number of regions matters).
        region_mask_feature: masked regions get a learned feature.
        num_region_classes: columns of the region classification head; 0 leaves the head out.
        region_regression: predict the masked region's feature (where there are no classes).
        object_mask_word_embedding: masked regions get a linguistic vector of their own.
        word_embedding_frozen: the word table is not trained, but for its first ``num_special_words`` rows.
        num_special_words: rows kept trainable by ``word_embedding_frozen``.
        position_embedding_frozen: position rows are not trained.
        with_pooler: a vector of the whole sequence, for the match head.
        pooling: ``first``: tanh(Linear(first state)), as in BERT; ``product``: of the first state with the whole
            image's (see :class:`~mmbert.model.heads.ProductPooler`).
        with_mlm_head: masked-token head, decoder tied to the word embedding.
        match_outputs: columns of the image-text match head: 1 (MM-BERT), 2 (VL-BERT) or 0 for none.
        heads: further heads by name with their options, ``{"answer": {"kind": "linear", "outputs": 3129}}``; see
            :mod:`mmbert.model.heads`.
        embedding_size: width of the unit vectors of text and image; 0 leaves the projections out.
        logit_scale_init: initial value of log(1 / temperature) of the contrastive loss.
        rerank_weight: weight of the match logit when it is added to ``exp(logit_scale) * cosine``.
        rerank_views: how many views of a candidate image re-ranking takes the mean cosine of (``vision.views``).
        query_bank: number of texts kept with the model as vectors, to tell by them images that are near to everything.
        hub_weight: weight of an image's nearness to the bank, taken off in re-ranking.
        vision: the vision encoder and its options, ``{"kind": "grid", ...}``; None for precomputed features.
        region_encoder: identity of the encoder whose precomputed regions the model was trained with; it refuses those
            of another. None: not known (a converted checkpoint), or never trained with any.
        num_decoder_layers: layers of a decoder that writes text while it looks at the trunk's states (an
            encoder-decoder); 0: the trunk itself writes (a prefix language model).
        decoder_own_embeddings: the decoder has tables and visual inputs of its own, and adds positions and a segment a
            second time (MM-BERT's); else it shares the trunk's.
        mask_token_id: the ``[MASK]`` at which answers and translations are read, where the model has such a head.
        max_text_tokens: longest text, special tokens included, that the processor makes.
    """

    model_type = "mmbert"

    vocab_size: int = 119547
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 3
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    position_padding_idx: int = -1
    visual_size: int = 768
    visual_ln: bool = True
    visual_scale_text_init: float | int = 0.0
    visual_scale_object_init: float | int = 0.0
    region_feature_size: int = 2048
    coordinate_frequencies: int = 256
    region_dropout: float | int = 0.1
    num_region_classes: int = 1601
    region_regression: bool = False
    text_only_visual: bool = True
    text_only_visual_size: int | None = None
    ignore_regions: bool = False
    region_mask_feature: bool = True
    object_mask_word_embedding: bool = True
    word_embedding_frozen: bool = False
    num_special_words: int = 1000
    position_embedding_frozen: bool = False
    with_pooler: bool = True
    pooling: str = "first"
    with_mlm_head: bool = True
    match_outputs: int = 1
    heads: dict[str, Any] | None = None
    embedding_size: int = 0
    logit_scale_init: float | int = 2.6593
    rerank_weight: float | int = 1.0
    rerank_views: int = 1
    query_bank: int = 0
    hub_weight: float | int = 0.0
    vision: dict[str, Any] | None = None
    region_encoder: str | None = None
    num_decoder_layers: int = 0
    decoder_own_embeddings: bool = False
    mask_token_id: int | None = None
    max_text_tokens: int = 64
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_attention_heads < 1:
            raise ValueError(f"num_attention_heads is at least 1, not {self.num_attention_heads}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.pooling not in ("first", "product"):
            raise ValueError(f"pooling is first or product, not {self.pooling!r}")
        if self.match_outputs not in (0, 1, 2):
            raise ValueError(f"match_outputs is 0, 1 or 2, not {self.match_outputs}")
        if self.decoder_own_embeddings and not self.num_decoder_layers:
            raise ValueError("decoder_own_embeddings needs num_decoder_layers")
        if self.match_outputs and not self.with_pooler:
            raise ValueError("the match head needs with_pooler")

    @property
    def visual_projection(self) -> bool:
        """Whether visual vectors need a projection to the hidden size."""
        return self.visual_size != self.hidden_size
