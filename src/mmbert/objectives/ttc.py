"""Text-text contrast: texts of one group (translations, names and keywords) are nearer than all others in the step.

On several processes the others are those of all processes. Where the task says which texts are second sides (of
sentences and their translations), the embeddings are left by side for what makes pairs of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmbert.model.packed import PackedBatch, Target
from mmbert.model.ranks import gather_rows
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StepContext, counts
from mmbert.objectives.itc import Embedded, soft_contrast

READS = "sequences"
NEEDS = ("embeddings",)
GATHERS = True


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``across`` compares each text with those of the other side only."""

    across: bool = False


def labels_read(options: Options) -> tuple[str, ...]:
    """Keys of the labels' ``extra`` that it reads."""
    return ("second",) if options.across else ()


@dataclass
class _Sides:
    """Groups and sides of the texts of all processes.

    Attributes:
        groups: [N] group numbers.
        second: [N] which are second sides.
        own: [n] places of this process's texts among them.
    """

    groups: Tensor
    second: Tensor
    own: Tensor

    @classmethod
    def of(cls, target: Target, device: torch.device) -> _Sides:
        """Exchange them; texts without a side are first sides."""
        second = target.extra.get("second", torch.zeros_like(target.labels)).long()
        groups = gather_rows(target.labels.to(device))
        own = groups.start + torch.arange(len(target.labels), device=device)
        return cls(groups.rows, gather_rows(second.to(device)).rows.bool(), own)

    def compared(self, options: Options) -> tuple[Tensor, Tensor]:
        """[n, N] which texts each is compared with, and which of these are of its group."""
        numbers = torch.arange(len(self.groups), device=self.own.device)
        compared = self.own[:, None] != numbers[None, :]
        if options.across:
            compared &= self.second[self.own, None] != self.second[None, :]
        return compared, (self.groups[self.own, None] == self.groups[None, :]) & compared


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Texts that have another of their group anywhere in the batch (of all processes)."""
    _, positive = _Sides.of(target, batch.device).compared(options)
    return Plan(counts(positive.any(1).sum()))


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy of each text over the other texts of the step (Khosla et al., 2020)."""
    head = step.model.embedding_head
    if head is None:
        raise ValueError("contrast needs a model with embedding_size > 0")
    if options.across and "second" not in target.extra:
        raise ValueError("across needs labels that say which side a text is of; those of translation_retrieval do")
    texts = head.embed_text(step.first_states(target.positions))
    every, sides = gather_rows(texts).rows, _Sides.of(target, texts.device)
    step.shared[f"{name}/everybody"] = _by_side(every, sides)
    compared, positive = sides.compared(options)
    logits = (head.scale * texts @ every.T).masked_fill(~compared, -1e9)
    return LossTerm(soft_contrast(logits, positive.float()), positive.any(1).sum().float())


def _by_side(texts: Tensor, sides: _Sides) -> Embedded:
    """Embeddings of all processes, second sides in the place of images."""
    first, second = (~sides.second).nonzero()[:, 0], sides.second.nonzero()[:, 0]
    return Embedded(first, texts[first], sides.groups[first], second, texts[second], sides.groups[second])
