"""Which tensor of ours is which of theirs: one table, read in both directions.

A rule pairs a pattern of our names with the canonical names (``compat.checkpoints``) of theirs. ``{n}`` stands for a
number, ``{part}`` for the end of a name, usually ``weight`` or ``bias``. Networks extend the table: add a rule, and
converting, converting back, and the reports of what is missing or left over follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mmbert.model.configuration import MMBertConfig

Form = Literal["same", "row", "stack"]


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        ours: pattern of our name.
        theirs: their names; several are stacked along the first dimension.
        form: ``same``; ``row``: theirs is [1, X], ours [X]; ``stack``: ours is theirs one below the other.
    """

    ours: str
    theirs: tuple[str, ...]
    form: Form = "same"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression of our name."""
        escaped = re.escape(self.ours).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{part\}", r"(?P<part>.+)")
        return re.compile(escaped)

    def names(self, ours: str) -> tuple[str, ...] | None:
        """Their names of our tensor, or None where the rule is about others."""
        found = self.pattern.fullmatch(ours)
        return None if found is None else tuple(name.format(**found.groupdict()) for name in self.theirs)

    def to_ours(self, parts: list[Tensor]) -> Tensor:
        """Our tensor, made of theirs.

        Raises:
            ValueError: they cannot be put together.
        """
        if self.form == "same":
            return parts[0]
        if self.form == "row":
            if parts[0].dim() != 2 or len(parts[0]) != 1:
                raise ValueError(f"is {list(parts[0].shape)}, not [1, X]")
            return parts[0][0]
        if len({(p.shape, p.dtype) for p in parts}) != 1:
            raise ValueError(f"differ in shape or type: {[list(p.shape) for p in parts]}")
        return torch.cat(parts)

    def to_theirs(self, tensor: Tensor) -> list[Tensor]:
        """Their tensors, made of ours."""
        if self.form == "row":
            return [tensor.unsqueeze(0)]
        return list(tensor.chunk(len(self.theirs))) if self.form == "stack" else [tensor]


def _same(ours: str, theirs: str) -> Rule:
    return Rule(ours + ".{part}", (theirs + ".{part}",))


_LAYER, _THEIR_LAYER = "trunk.encoder.layers.{n}.", "vlbert.encoder.layer.{n}."

TRUNK = (
    _same("trunk.region_embedding.projection", "image_feature_extractor.obj_downsample.1"),
    Rule("trunk.region_embedding.mask_feature", ("object_mask_visual_embedding.weight",), "row"),
    _same("trunk.embeddings.words", "vlbert.word_embeddings"),
    _same("trunk.embeddings.special_words", "vlbert.special_word_embeddings"),
    _same("trunk.embeddings.positions", "vlbert.position_embeddings"),
    _same("trunk.embeddings.segments", "vlbert.token_type_embeddings"),
    Rule("trunk.embeddings.region_word", ("object_linguistic_embeddings.weight",), "row"),
    Rule("trunk.embeddings.masked_region_word", ("object_mask_word_embedding.weight",), "row"),
    Rule("trunk.embeddings.end_word", ("vlbert.end_embedding.weight",), "row"),
    Rule("trunk.embeddings.text_only_visual", ("aux_text_visual_embedding.weight",), "row"),
    _same("trunk.embeddings.text_visual.projection", "vlbert.visual_1x1_text"),
    _same("trunk.embeddings.object_visual.projection", "vlbert.visual_1x1_object"),
    _same("trunk.embeddings.text_visual.norm", "vlbert.visual_ln_text"),
    _same("trunk.embeddings.object_visual.norm", "vlbert.visual_ln_object"),
    Rule("trunk.embeddings.text_visual.scale", ("vlbert.visual_scale_text",)),
    Rule("trunk.embeddings.object_visual.scale", ("vlbert.visual_scale_object",)),
    _same("trunk.embeddings.norm", "vlbert.embedding_LayerNorm"),
    Rule(
        _LAYER + "attention.qkv.{part}",
        tuple(_THEIR_LAYER + f"attention.self.{name}.{{part}}" for name in ("query", "key", "value")),
        "stack",
    ),
    _same(_LAYER + "attention_output", _THEIR_LAYER + "attention.output.dense"),
    _same(_LAYER + "attention_norm", _THEIR_LAYER + "attention.output.LayerNorm"),
    _same(_LAYER + "intermediate", _THEIR_LAYER + "intermediate.dense"),
    _same(_LAYER + "output", _THEIR_LAYER + "output.dense"),
    _same(_LAYER + "output_norm", _THEIR_LAYER + "output.LayerNorm"),
    _same("trunk.pooler.dense", "vlbert.pooler.dense"),
)
PRETRAINING_HEADS = (
    _same("token_head.dense", "vlbert.mlm_head.predictions.transform.dense"),
    _same("token_head.norm", "vlbert.mlm_head.predictions.transform.LayerNorm"),
    Rule("token_head.bias", ("vlbert.mlm_head.predictions.bias",)),
    _same("region_head.dense", "vlbert.mvrc_head.transform.dense"),
    _same("region_head.predictor", "vlbert.mvrc_head.region_cls_pred"),
    _same("match_head", "vlbert.relationsip_head.caption_image_relationship"),
)
_WRITER, _THEIR_WRITER = "decoder.layers.{n}.", "decoder.decoder.encoder.layer.{n}."
DECODER = (
    *(Rule(r.ours.replace("trunk.", "decoder.", 1), (r.theirs[0].replace("vlbert.", "decoder.", 1),), r.form)
      for r in TRUNK if r.ours.startswith("trunk.embeddings.") and r.theirs[0].startswith("vlbert.")),
    _same("decoder.positions", "decoder.decoder.embeddings.position_embeddings"),
    _same("decoder.segments", "decoder.decoder.embeddings.token_type_embeddings"),
    _same("decoder.norm", "decoder.decoder.embeddings.LayerNorm"),
    Rule(
        _WRITER + "qkv.{part}",
        tuple(_THEIR_WRITER + f"attention.self.{name}.{{part}}" for name in ("query", "key", "value")),
        "stack",
    ),
    _same(_WRITER + "attention_output", _THEIR_WRITER + "attention.output.dense"),
    _same(_WRITER + "attention_norm", _THEIR_WRITER + "attention.output.LayerNorm"),
    _same(_WRITER + "cross_query", _THEIR_WRITER + "crossattention.self.query"),
    Rule(
        _WRITER + "cross_keys_values.{part}",
        tuple(_THEIR_WRITER + f"crossattention.self.{name}.{{part}}" for name in ("key", "value")),
        "stack",
    ),
    _same(_WRITER + "cross_output", _THEIR_WRITER + "crossattention.output.dense"),
    _same(_WRITER + "cross_norm", _THEIR_WRITER + "crossattention.output.LayerNorm"),
    _same(_WRITER + "intermediate", _THEIR_WRITER + "intermediate.dense"),
    _same(_WRITER + "output", _THEIR_WRITER + "output.dense"),
    _same(_WRITER + "output_norm", _THEIR_WRITER + "output.LayerNorm"),
    _same("token_head.dense", "decoder.mlm_head.predictions.transform.dense"),
    _same("token_head.norm", "decoder.mlm_head.predictions.transform.LayerNorm"),
    Rule("token_head.bias", ("decoder.mlm_head.predictions.bias",)),
)  # fmt: skip
"""Rules of MM-BERT's decoder, which has the token head; they come before the others."""
TASK_HEADS: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("lexical", "linear"): (_same("heads.lexical.predictor", "vlbert.MLT_head.MLT_cls_pred"),),
    ("answer", "linear"): (_same("heads.answer.predictor", "final_mlp.1"),),
    ("answer", "two_layer"): (
        _same("heads.answer.dense", "final_mlp.1"),
        _same("heads.answer.predictor", "final_mlp.4"),
    ),
    ("answer", "transform"): (
        _same("heads.answer.dense", "final_mlp.0.dense"),
        _same("heads.answer.norm", "final_mlp.0.LayerNorm"),
        _same("heads.answer.predictor", "final_mlp.2"),
    ),
    ("grounding", "transform"): (
        _same("heads.grounding.dense", "final_mlp.0.dense"),
        _same("heads.grounding.predictor", "final_mlp.2"),
    ),
    ("choice", "linear"): (_same("heads.choice.predictor", "final_mlp.1"),),
    ("choice", "two_layer"): (
        _same("heads.choice.dense", "final_mlp.1"),
        _same("heads.choice.predictor", "final_mlp.4"),
    ),
    ("region_class", "transform"): (
        _same("heads.region_class.dense", "cnn_loss_reg.0.dense"),
        _same("heads.region_class.predictor", "cnn_loss_reg.2"),
    ),
    ("feature_class", "linear"): (
        _same("heads.feature_class.predictor", "image_feature_extractor.regularizing_predictor"),
    ),
}
"""Rules of the named heads, by name and kind."""
VISION: dict[str, tuple[Rule, ...]] = {
    "resnet": (
        _same("trunk.vision.layer4", "image_feature_extractor.roi_head_feature_extractor"),
        *(_same(f"trunk.vision.{name}", f"image_feature_extractor.backbone.{name}") for name in (
            "conv1", "bn1", "layer1", "layer2", "layer3",
        )),
    ),
}  # fmt: skip
"""Rules of the vision encoders that the originals have, by kind."""


def rules_for(config: MMBertConfig) -> tuple[Rule, ...]:
    """The table of a network."""
    heads = (TASK_HEADS.get((name, options["kind"]), ()) for name, options in (config.heads or {}).items())
    vision = VISION.get((config.vision or {}).get("kind", ""), ())
    decoder = DECODER if config.decoder_own_embeddings else ()
    return (*decoder, *TRUNK, *vision, *PRETRAINING_HEADS, *(rule for rules in heads for rule in rules))


def find(rules: Iterable[Rule], ours: str) -> tuple[Rule, tuple[str, ...]] | None:
    """The rule about our tensor, and their names of it."""
    for rule in rules:
        names = rule.names(ours)
        if names is not None:
            return rule, names
    return None


def their_tensors(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (weights, or gradients by the same names) under their canonical names.

    Raises:
        KeyError: one of ours has no place in their networks.
    """
    rules = tuple(rules)
    made: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        found = find(rules, name)
        if found is None:
            raise KeyError(name)
        made.update(zip(found[1], found[0].to_theirs(tensor), strict=True))
    return made
