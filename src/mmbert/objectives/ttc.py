"""Text-text contrast: texts of one group (translations, names and keywords) are nearer than all others in the step."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext
from mmbert.objectives.itc import soft_contrast

READS = "sequences"


class Options(BaseModel):
    """``weight`` of the loss."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy of each text over the other texts of the step (Khosla et al., 2020)."""
    head = step.model.embedding_head
    if head is None:
        raise ValueError("contrast needs a model with embedding_size > 0")
    texts = head.embed_text(step.first_states(target.positions))
    itself = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    logits = (head.scale * texts @ texts.T).masked_fill(itself, -1e9)
    positive = ((target.labels[:, None] == target.labels[None, :]) & ~itself).float()
    count = positive.any(1).sum().float()
    return LossTerm(soft_contrast(logits, positive), count)
