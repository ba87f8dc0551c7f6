"""The public model classes of single tasks: the trunk with its heads, and a ``forward`` that gives the task's logits.

They are :class:`MMBertForPreTraining` with another ``forward``; weights have the same names in all of them. Losses are
objectives (``mmbert.objectives``), which read states through the heads' methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmbert.model.modeling import MMBertForPreTraining, MMBertOutput
from mmbert.model.packed import TEXT, PackedBatch, region_places


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
    """One ``forward`` for all tasks; what a task reads, and with which head, is its :meth:`read`."""

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        """The task's logits; ``kwargs`` as of the trunk."""
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
        return self.read(batch, **kwargs)


class MMBertForImageTextMatching(_TaskModel):
    """Do this text and this image (or these two texts) belong together?

    ``logits`` are [B, 1] (a sigmoid gives the probability) or [B, 2] (a softmax does), as ``match_outputs`` says.
    """

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        return _read_pooled(self, self.match_columns, batch, **kwargs)


class MMBertForMultimodalLexicalTranslation(_TaskModel):
    """Which translation does an ambiguous word have here? ``logits`` [B, words] over the list of target words."""

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        return _read_pooled(self, partial(self.head_logits, "lexical"), batch, **kwargs)


class MMBertForQuestionAnswering(_TaskModel):
    """Answers a question about an image: ``logits`` [B, answers], asked at the ``[MASK]`` of each sequence."""

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        return read_head(self, "answer", batch, mask_places(batch, self.config.mask_token_id), **kwargs)


class MMBertForReferringExpressions(_TaskModel):
    """Which region does an expression mean? ``logits`` [M], one per region; a sigmoid gives the probability."""

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        return _one_logit(read_head(self, "grounding", batch, region_places(batch), **kwargs))

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

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        return _one_logit(read_sequences(self, "choice", batch, **kwargs))

    @torch.no_grad()
    def probabilities(self, output: MMBertTaskOutput, choices: int = 4) -> Tensor:
        """[B / choices, choices] probabilities of the choices of each question, which follow one another."""
        assert output.logits is not None
        return output.logits.view(-1, choices).softmax(1)


class MMBertForTranslation(_TaskModel):
    """Predicts the token at ``[MASK]``: ``logits`` [M, vocabulary]. Translates (or captions) token by token.

    See :func:`mmbert.model.masked_generation.generate_at_mask`.
    """

    def read(self, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
        places = mask_places(batch, self.config.mask_token_id)
        output, states = _run(self, batch, places, kwargs)
        return MMBertTaskOutput(**output, logits=self.token_logits(states(places)), places=places)


def read_head(
    model: MMBertForPreTraining, name: str, batch: PackedBatch, places: Tensor, **kwargs: Any
) -> MMBertTaskOutput:
    """Logits [M, outputs] of a named head at [M] flat ``places``; the last states are those at the places.

    Args:
        model: trunk and heads.
        name: of the head.
        batch: the sequences.
        places: flat positions.
        kwargs: as of the trunk.
    """
    output, states = _run(model, batch, model.places_read(name, batch, places), kwargs)
    logits = model.logits_at(name, batch, places, states)
    return MMBertTaskOutput(**{**output, "last_hidden_state": states(places)}, logits=logits, places=places)


def read_sequences(model: MMBertForPreTraining, name: str, batch: PackedBatch, **kwargs: Any) -> MMBertTaskOutput:
    """Logits [B, outputs] of a head that is asked about whole sequences; arguments as of :func:`read_head`."""
    output, states = _run(model, batch, model.places_read(name, batch, batch.starts), kwargs)
    sequences = torch.arange(batch.num_sequences, device=batch.device)
    logits = model.sequence_logits(name, batch, sequences, output.pooled, states)
    return MMBertTaskOutput(**output, logits=logits)


def _read_pooled(
    model: MMBertForPreTraining, head: Callable[[Tensor], Tensor], batch: PackedBatch, **kwargs: Any
) -> MMBertTaskOutput:
    """What ``head`` makes of the [B, H] pooled vectors; no other last states are computed."""
    output, _ = _run(model, batch, batch.starts[:0], kwargs)
    assert output.pooled is not None
    return MMBertTaskOutput(**output, logits=head(output.pooled))


def _one_logit(output: MMBertTaskOutput) -> MMBertTaskOutput:
    """Logits [M, 1] as [M]."""
    assert output.logits is not None
    output.logits = output.logits.squeeze(1)
    return output


def _run(
    model: MMBertForPreTraining, batch: PackedBatch, positions: Tensor, options: dict[str, Any]
) -> tuple[MMBertOutput, Callable[[Tensor], Tensor]]:
    """The trunk's output for sorted positions, and what gives the states of some of these."""
    output = MMBertForPreTraining.forward(model, batch, positions=positions, **options)
    found = output.last_hidden_state
    assert found is not None
    return output, lambda asked: found.index_select(0, torch.searchsorted(positions, asked))


def mask_places(batch: PackedBatch, mask_token_id: int | None) -> Tensor:
    """[M] flat positions of ``[MASK]``.

    Raises:
        ValueError: the configuration does not say which token that is.
    """
    if mask_token_id is None:
        raise ValueError("the configuration has no mask_token_id")
    text = (batch.kinds == TEXT).nonzero().squeeze(1)
    return text[batch.token_ids == mask_token_id]
