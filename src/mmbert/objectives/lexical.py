"""Lexical translation: which target word does the ambiguous word of this sequence have?"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional as F

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, StepContext, exact

READS = "sequences"
NEEDS = ("heads.lexical", "pooled")


class Options(BaseModel):
    """``weight`` of the loss; ``candidates``: choose only among the translations that the word has in training."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0
    candidates: bool = False


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over the target words for the [M] sequences ``target.positions``.

    The logits are raised by ``target.extra["prior"]`` [M, words], which a task may leave out. With ``candidates`` only
    over those that ``target.extra["among"]`` [M, words] says.
    """
    assert step.output.pooled is not None
    logits = exact(step.model.head_logits("lexical", step.output.pooled.index_select(0, target.positions)))
    if "prior" in target.extra:
        logits = logits + target.extra["prior"]
    if options.candidates:
        logits = logits.masked_fill(~target.extra["among"], float("-inf"))
    total = F.cross_entropy(logits, target.labels, reduction="sum")
    count = torch.tensor(float(len(target.labels)), device=total.device)
    return LossTerm(total, count, {"accuracy": ((logits.argmax(-1) == target.labels).sum().float(), count)})
