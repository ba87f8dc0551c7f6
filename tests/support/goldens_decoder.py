"""The goldens of MM-BERT's encoder-decoder, run in the mode that repeats the original's masks.

Adding -10000 to every score rounds it to about 0.001, so what comes behind such a mask is compared to 2e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from goldens import OUTPUTS, Found, Golden, metas
from mmbert.compat.batches import pack_padded, valid_boxes
from mmbert.compat.encoder_decoder import OriginalEncoderDecoder, PaddedStream
from mmbert.compat.keys import rules_for, their_tensors
from mmbert.model.masked_generation import Generated
from mmbert.model.packed import PackedBatch, SequenceSpec

BEHIND_A_MASK = 2e-3


class EncoderDecoderGolden(Golden):
    """One of them."""

    relative = 2e-3

    @property
    def table(self) -> Mapping[str, Callable[[Any, Tensor], Found]]:
        return OUTPUTS | DECODER

    def tolerance(self, name: str, wanted: Tensor) -> float:
        exact = super().tolerance(name, wanted)
        behind = name in ("mlm_logits", "mask_logits", "top_logit", "loss", "mlm_loss") or name.startswith(
            "mid.decoder."
        )
        if not wanted.is_floating_point():
            return exact
        if name in self.gradients:
            return max(exact, BEHIND_A_MASK * float(wanted.abs().max()))
        return BEHIND_A_MASK if behind and not name.endswith(("embedding", "embeddings")) else exact

    @cached_property
    def padded_text(self) -> tuple[Tensor, Tensor]:
        text = self.given("text_en")
        return text, torch.zeros_like(text)

    @cached_property
    def target_batch(self) -> PackedBatch:
        """The second stream."""
        return pack_padded(self.given("text_de"), boxes=self.boxes, sizes=self.given("im_info"))

    @cached_property
    def original(self) -> OriginalEncoderDecoder:
        return OriginalEncoderDecoder(self.model)

    def both(self) -> tuple[PaddedStream, PaddedStream]:
        _, vectors = self.model.trunk.embed_regions(self.batch)
        source = self.original.encode(self.batch, vectors)
        return source, self.original.decode(self.target_batch, source.last, vectors)

    @cached_property
    def decoded(self) -> PaddedStream:
        with torch.no_grad():
            return self.both()[1]

    def cross_entropy(self, stream: PaddedStream) -> Tensor:
        labels = self.given("mlm_labels_de")
        logits = self.model.token_logits(stream.last[:, : labels.shape[1]][labels != -1])
        return F.cross_entropy(logits, labels[labels != -1])

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        with torch.no_grad():
            loss = self.cross_entropy(self.decoded)
        return {"captions/mlm": loss, "loss": loss}

    @cached_property
    def our_gradients(self) -> dict[str, Tensor]:
        self.model.zero_grad()
        self.cross_entropy(self.both()[1]).backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return their_tensors(rules_for(self.model.config), found)

    @cached_property
    def generated(self) -> Generated:
        sources = [
            SequenceSpec(ids[ids > 0].numpy(), 0, spec.text_rows, spec.region_rows)
            for ids, spec in zip(self.given("text_en"), self.batch.sequences, strict=True)
        ]
        ids = {name: getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "mask", "sep")}
        return self.original.generate(
            sources, regions=self.batch.regions, cls_id=ids["cls"], mask_id=ids["mask"], sep_id=ids["sep"],
            stop_id=self.tokenizer.convert_tokens_to_ids("[STOP]"), keep_finished=True,
            keep_logits=len(self.outputs["mask_logits"]),
        )  # fmt: skip

    def columns(self, states: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """[B, L, ...] of the second stream cut to ``width`` columns, and which of them are real."""
        real = torch.arange(states.shape[1]) < torch.tensor(self.target_batch.lengths)[:, None]
        return states[:, :width], real[:, :width]

    def packed(self, values: Tensor, like: Tensor) -> Found:
        """[P, ...] of the second stream as columns."""
        columns = values.new_zeros(like.shape)
        there = torch.zeros(like.shape[:2], dtype=torch.bool)
        for row, part in enumerate(values.split(self.target_batch.lengths)):
            columns[row, : len(part)], there[row, : len(part)] = part, True
        return columns, there

    def target_visual(self) -> Tensor:
        """[B, W, V] visual vector of each target column."""
        width = self.given("text_de").shape[1]
        rows = [int(spec.text_rows) for spec in self.target_batch.sequences]  # type: ignore[arg-type]
        assert self.region_vectors is not None
        return self.region_vectors[rows][:, None].expand(-1, width, -1)


def golden_named(name: str, work: Path) -> Golden:
    """The golden of a name."""
    kind = EncoderDecoderGolden if "text_de" in metas()[name].get("inputs", {}) else Golden
    return kind(name, work)


def _logits(g: EncoderDecoderGolden, like: Tensor) -> Found:
    with torch.no_grad():
        logits = g.model.token_logits(g.decoded.last[:, : like.shape[1]].flatten(0, 1))
    return logits.view(like.shape), g.given("text_de") > 0


def _objects(g: EncoderDecoderGolden, like: Tensor) -> Found:
    kept = [
        s[len(spec.token_ids) : len(spec) - 1] for s, spec in zip(g.decoded.last, g.target_batch.sequences, strict=True)
    ]
    return g.regions(torch.cat(kept), like), None


def _kind(*kinds: int) -> Callable[[EncoderDecoderGolden, Tensor], Found]:
    def make(g: EncoderDecoderGolden, like: Tensor) -> Found:
        wanted = torch.as_tensor(sum(g.target_batch.kinds == kind for kind in kinds) > 0)
        return g.packed(wanted, like)[0], None

    return make


def _text(g: EncoderDecoderGolden, like: Tensor) -> Tensor:
    return g.given("text_de") > 0


DECODER: dict[str, Callable[[Any, Tensor], Found]] = {
    "mlm_logits": _logits,
    "mid.decoder.vlbert_in.text_input_ids": lambda g, _: (g.given("text_de"), None),
    "mid.decoder.vlbert_in.text_token_type_ids": lambda g, like: (torch.zeros_like(like), None),
    "mid.decoder.vlbert_in.text_visual_embeddings": lambda g, like: (g.target_visual(), _text(g, like)),
    "mid.decoder.vlbert_in.text_mask": lambda g, like: (_text(g, like), None),
    "mid.decoder.vlbert_in.object_mask": lambda g, like: (valid_boxes(g.boxes)[:, : like.shape[1]], None),
    "mid.decoder.embedding": lambda g, like: (g.decoded.embedded, None),
    "mid.decoder.attention_mask": _kind(0, 1, 2, 3),
    "mid.decoder.sequence_text_mask": _kind(0),
    "mid.decoder.sequence_object_mask": _kind(1, 2),
    "mid.decoder.position_ids": lambda g, like: g.packed(g.target_batch.position_ids, like),
    "mid.decoder.token_type_ids": lambda g, like: g.packed(g.target_batch.segment_ids, like),
    "mid.decoder.layer0_hidden": lambda g, like: (g.decoded.layers[0], None),
    "mid.decoder.text_hidden": lambda g, like: g.columns(g.decoded.last, like.shape[1]),
    "mid.decoder.object_hidden": _objects,
}
