"""Lexical translation: which target word does the ambiguous word of this sequence have?"""

from __future__ import annotations

from mmbert.model.packed import Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, StepContext, classification_term, exact

READS = "sequences"
NEEDS = ("heads.lexical", "pooled")


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``candidates``: choose only among the translations that the word has in training."""

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
    return classification_term(logits, target.labels)
