"""Masked language modelling: predict the hidden pieces of text (Devlin et al., 2019)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext, loss_term

READS = "positions"


class Options(BaseModel):
    """``weight`` of the loss; ``train_table``: the tied decoder trains the word table; ``per_sequence``: average within
    each sequence first.

    Where contrast trains the table too and the corpus is small, switch it off: the softmax reaches every row at every
    step, and Adam turns these small, alike gradients into steps of full size that make all words alike.
    """

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0
    train_table: bool = True
    per_sequence: bool = False


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over the vocabulary at [M] labelled positions only."""
    logits = step.model.token_logits(step.states(target.positions), train_table=options.train_table).float()
    losses = F.cross_entropy(logits, target.labels, reduction="none")
    term = loss_term(step, target.positions, losses, torch.ones_like(losses), options.per_sequence)
    count = torch.tensor(float(len(target.labels)), device=losses.device)
    term.metrics["accuracy"] = ((logits.argmax(-1) == target.labels).sum().float(), count)
    return term
