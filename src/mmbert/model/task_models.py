"""The public model classes of single tasks: the trunk with its heads, and a ``forward`` that gives the task's logits.

They are :class:`MMBertForPreTraining` with another ``forward``; weights have the same names in all of them. Losses are
objectives (``mmbert.objectives``), which read states through the heads' methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmbert.model.modeling import MMBertForPreTraining, MMBertOutput
from mmbert.model.packed import MASKED_REGION, REGION, TEXT, PackedBatch


@dataclass
class MMBertTaskOutput(MMBertOutput):
    """The trunk's output, and what the task's head makes of it.

    Attributes:
        logits: [M, ...], one row per place the head reads.
        places: [M] flat positions of these places; None where the head reads the pooled vector of each sequence.
    """

    logits: Tensor | None = None
    places: Tensor | None = None


class _TaskModel(MMBertForPreTraining):
    """Runs the trunk for the places that the head reads, and the head."""

    def places(self, batch: PackedBatch) -> Tensor | None:
        """[M] flat positions that the head reads, or None for the pooled vector of each sequence."""
        return None

    def logits(self, states: Tensor) -> Tensor:
        """[M, H] states (or pooled vectors) to logits."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch, *, positions: Tensor | None = None, **kwargs: Any) -> MMBertOutput:
        """Logits of the task.

        Args:
            batch: the sequences.
            positions: [S] as in the trunk: whoever gives them (training does) gets the trunk's output, without logits.
            kwargs: as of the trunk.
        """
        if positions is not None:
            return super().forward(batch, positions=positions, **kwargs)
        places = self.places(batch)
        read = batch.starts[:0] if places is None else places
        output = super().forward(batch, positions=read, **kwargs)
        states = output.pooled if places is None else output.last_hidden_state
        assert states is not None
        return MMBertTaskOutput(**output, logits=self.logits(states), places=places)


class MMBertForImageTextMatching(_TaskModel):
    """Do this text and this image (or these two texts) belong together?

    ``logits`` are [B, 1] (a sigmoid gives the probability) or [B, 2] (a softmax does), as ``match_outputs`` says.
    """

    def logits(self, states: Tensor) -> Tensor:
        return self.match_columns(states)


class MMBertForMultimodalLexicalTranslation(_TaskModel):
    """Which translation does an ambiguous word have here? ``logits`` [B, words] over the list of target words."""

    def logits(self, states: Tensor) -> Tensor:
        return self.head_logits("lexical", states)


class MMBertForQuestionAnswering(_TaskModel):
    """Answers a question about an image: ``logits`` [B, answers], read at the ``[MASK]`` of each sequence."""

    def places(self, batch: PackedBatch) -> Tensor | None:
        return mask_places(batch, self.config.mask_token_id)

    def logits(self, states: Tensor) -> Tensor:
        return self.head_logits("answer", states)


class MMBertForReferringExpressions(_TaskModel):
    """Which region does an expression mean? ``logits`` [M], one per region; a sigmoid gives the probability."""

    def forward(self, batch: PackedBatch, *, positions: Tensor | None = None, **kwargs: Any) -> MMBertOutput:
        if positions is not None:
            return super().forward(batch, positions=positions, **kwargs)
        return ground_regions(self, batch, **kwargs)

    @torch.no_grad()
    def best_regions(self, output: MMBertTaskOutput, batch: PackedBatch) -> list[int]:
        """The number (within its sequence) of the region with the highest logit, per sequence."""
        assert output.logits is not None
        counts = [len(s.region_rows) for s in batch.sequences]
        return [int(part.argmax()) for part in output.logits.split(counts)]


class MMBertForMultipleChoice(_TaskModel):
    """Which of several texts is right about an image (visual commonsense reasoning)? ``logits`` [B], one per sequence.

    The choices of a question are sequences of their own over the same rows of the region table: the image is worked
    on once.
    """

    def logits(self, states: Tensor) -> Tensor:
        return self.head_logits("choice", states).squeeze(1)

    @torch.no_grad()
    def probabilities(self, output: MMBertTaskOutput, choices: int = 4) -> Tensor:
        """[B / choices, choices] probabilities of the choices of each question, which follow one another."""
        assert output.logits is not None
        return output.logits.view(-1, choices).softmax(1)


class MMBertForTranslation(_TaskModel):
    """Predicts the token at ``[MASK]``: ``logits`` [M, vocabulary]. Translates (or captions) token by token.

    See :func:`mmbert.model.masked_generation.generate_at_mask`.
    """

    def places(self, batch: PackedBatch) -> Tensor | None:
        return mask_places(batch, self.config.mask_token_id)

    def logits(self, states: Tensor) -> Tensor:
        return self.token_logits(states)


def ground_regions(model: MMBertForPreTraining, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
    """Logits [M] that each region of a batch is meant, by the head ``grounding``; ``kwargs`` as of the trunk."""
    places = region_places(batch)
    read, rows = torch.cat([batch.starts, places]).unique(return_inverse=True)
    output = MMBertForPreTraining.forward(model, batch, positions=read, **kwargs)
    assert output.last_hidden_state is not None
    firsts, regions = output.last_hidden_state.index_select(0, rows).split([batch.num_sequences, len(places)])
    counts = torch.tensor([len(spec.region_rows) for spec in batch.sequences], device=batch.device)
    logits = model.head_logits("grounding", regions, firsts.repeat_interleave(counts, 0)).squeeze(1)
    return MMBertTaskOutput(**{**output, "last_hidden_state": regions}, logits=logits, places=places)


def mask_places(batch: PackedBatch, mask_token_id: int | None) -> Tensor:
    """[M] flat positions of ``[MASK]``.

    Raises:
        ValueError: the configuration does not say which token that is.
    """
    if mask_token_id is None:
        raise ValueError("the configuration has no mask_token_id")
    text = (batch.kinds == TEXT).nonzero().squeeze(1)
    return text[batch.token_ids == mask_token_id]


def region_places(batch: PackedBatch) -> Tensor:
    """[M] flat positions of all regions."""
    return ((batch.kinds == REGION) | (batch.kinds == MASKED_REGION)).nonzero().squeeze(1)
