"""Multiple choice: which of a question's texts is right? (Zellers et al., 2019, VCR: four answers, four rationales.)"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, exact

HEAD = "choice"
NEEDS = (f"heads.{HEAD}",)


def reads(model: MMBertForPreTraining, batch: PackedBatch, target: Target) -> Tensor:
    """[S] positions whose states are read: the first of each sequence, and what the head looks at around it."""
    return model.places_read(HEAD, batch, batch.starts.index_select(0, target.positions))


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``sigmoid``: each choice is right or wrong by itself, else one of its question's is."""

    sigmoid: bool = False


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over the choices of each question, or binary cross entropy over all choices.

    ``target.positions`` [M] are sequences, ``target.labels`` [M] 1 for the right ones; the choices of a question have
    the same number in ``target.extra["question"]`` [M].
    """
    found = step.model.sequence_logits(HEAD, step.batch, target.positions, step.output.pooled, step.states)
    logits = exact(found.squeeze(1))
    right = target.labels > 0
    table = _by_question(logits, target.extra["question"])
    answers = _by_question(right.to(logits.dtype), target.extra["question"]).argmax(1)
    count = torch.tensor(float(len(table)), device=logits.device)
    accuracy = ((table.argmax(1) == answers).sum().float(), count)
    if options.sigmoid:
        total = F.binary_cross_entropy_with_logits(logits, right.to(logits.dtype), reduction="sum")
        return LossTerm(total, count.new_tensor(float(len(logits))), {"accuracy": accuracy})
    return LossTerm(F.cross_entropy(table, answers, reduction="sum"), count, {"accuracy": accuracy})


def _by_question(values: Tensor, questions: Tensor) -> Tensor:
    """[Q, most choices] values of each question's choices, in their order; -inf where a question has fewer."""
    _, rows = questions.unique(return_inverse=True)
    order = rows.argsort(stable=True)
    counts = rows.bincount()
    starts = counts.cumsum(0) - counts
    columns = torch.arange(len(rows), device=rows.device) - starts[rows[order]]
    table = values.new_full((len(counts), int(counts.max())), float("-inf"))
    return table.index_put((rows[order], columns), values[order])
