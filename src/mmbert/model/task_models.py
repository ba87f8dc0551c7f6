"""The public model classes of single tasks: the trunk with its heads, and a ``forward`` that gives the task's logits.

They are :class:`MMBertForPreTraining` with another ``forward``; weights have the same names in all of them. Losses are
objectives (``mmbert.objectives``), which read states through the heads' methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


class _HeadModel(MMBertForPreTraining):
    """Runs the trunk for what a named head reads, and the head, which may read what stands around its places."""

    head = ""

    def places(self, batch: PackedBatch) -> Tensor:
        """[M] flat positions that the head is asked about."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch, *, positions: Tensor | None = None, **kwargs: Any) -> MMBertOutput:
        """As of the other task models."""
        if positions is not None:
            return super().forward(batch, positions=positions, **kwargs)
        return read_head(self, self.head, batch, self.places(batch), **kwargs)


class MMBertForQuestionAnswering(_HeadModel):
    """Answers a question about an image: ``logits`` [B, answers], asked at the ``[MASK]`` of each sequence."""

    head = "answer"

    def places(self, batch: PackedBatch) -> Tensor:
        return mask_places(batch, self.config.mask_token_id)


class MMBertForReferringExpressions(_HeadModel):
    """Which region does an expression mean? ``logits`` [M], one per region; a sigmoid gives the probability."""

    head = "grounding"

    def places(self, batch: PackedBatch) -> Tensor:
        return region_places(batch)

    def forward(self, batch: PackedBatch, *, positions: Tensor | None = None, **kwargs: Any) -> MMBertOutput:
        output = super().forward(batch, positions=positions, **kwargs)
        if isinstance(output, MMBertTaskOutput) and output.logits is not None:
            output.logits = output.logits.squeeze(1)
        return output

    @torch.no_grad()
    def best_regions(self, output: MMBertTaskOutput, batch: PackedBatch) -> list[int]:
        """The number (within its sequence) of the region with the highest logit, per sequence."""
        assert output.logits is not None
        counts = [len(s.region_rows) for s in batch.sequences]
        return [int(part.argmax()) for part in output.logits.split(counts)]


class MMBertForMultipleChoice(MMBertForPreTraining):
    """Which of several texts is right about an image (visual commonsense reasoning)? ``logits`` [B], one per sequence.

    The choices of a question are sequences of their own over the same rows of the region table: the image is worked
    on once.
    """

    def forward(self, batch: PackedBatch, *, positions: Tensor | None = None, **kwargs: Any) -> MMBertOutput:
        if positions is not None:
            return super().forward(batch, positions=positions, **kwargs)
        output = read_sequences(self, "choice", batch, **kwargs)
        assert output.logits is not None
        output.logits = output.logits.squeeze(1)
        return output

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
