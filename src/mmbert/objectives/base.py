"""What an objective gets and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmbert.model.modeling import MMBertForPreTraining, MMBertOutput
from mmbert.model.packed import PackedBatch


@dataclass
class StepContext:
    """One forward pass, shared by all objectives of a step.

    Attributes:
        model: trunk and heads.
        batch: what was encoded.
        output: the trunk's output.
        shared: results that one objective leaves for another (keyed by target name).
        states_of_objectives: parameters that an objective owns, by its name.
    """

    model: MMBertForPreTraining
    batch: PackedBatch
    output: MMBertOutput
    shared: dict[str, Any] = field(default_factory=dict)
    states_of_objectives: Mapping[str, Any] = field(default_factory=dict)

    def states(self, positions: Tensor) -> Tensor:
        """[M] flat positions to [M, H] last states."""
        assert self.output.last_hidden_state is not None
        return self.output.last_hidden_state.index_select(0, positions)

    def first_states(self, sequences: Tensor) -> Tensor:
        """[n] sequence numbers to [n, H] states of their first token."""
        return self.states(self.batch.starts.index_select(0, sequences))


@dataclass
class LossTerm:
    """A loss as a sum and what to divide it by, so that batches and ranks can be averaged rightly.

    Attributes:
        total: sum of the loss over labelled places.
        count: number of places (or other divisor).
        metrics: name to (sum, count), detached.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
