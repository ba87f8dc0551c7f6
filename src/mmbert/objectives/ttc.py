"""Text-text contrast: texts of one group (translations, names and keywords) are nearer than all others in the step.

On several processes the others are those of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mmbert.model.packed import PackedBatch, Target
from mmbert.model.ranks import gather_rows
from mmbert.objectives.base import LossTerm, Plan, StepContext, counts
from mmbert.objectives.itc import soft_contrast

READS = "sequences"
GATHERS = True


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def _positive(groups: Tensor) -> tuple[Tensor, Tensor]:
    """[n] groups to [n, N]: which of everybody's texts is of the same group, and which is the text itself."""
    every = gather_rows(groups)
    numbers = torch.arange(len(every.rows), device=groups.device)
    itself = numbers[every.start : every.start + len(groups), None] == numbers[None, :]
    return (groups[:, None] == every.rows[None, :]) & ~itself, itself


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Texts that have another of their group anywhere in the batch (of all processes)."""
    return Plan(counts(_positive(target.labels.to(batch.device))[0].any(1).sum()))


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy of each text over the other texts of the step (Khosla et al., 2020)."""
    head = step.model.embedding_head
    if head is None:
        raise ValueError("contrast needs a model with embedding_size > 0")
    texts = head.embed_text(step.first_states(target.positions))
    positive, itself = _positive(target.labels)
    logits = (head.scale * texts @ gather_rows(texts).rows.T).masked_fill(itself, -1e9)
    return LossTerm(soft_contrast(logits, positive.float()), positive.any(1).sum().float())
