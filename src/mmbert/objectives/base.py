"""What an objective gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from mmbert.model.modeling import MMBertForPreTraining, MMBertOutput
from mmbert.model.packed import PackedBatch, Target


class ObjectiveOptions(BaseModel):
    """What a recipe may say of any objective: ``weight`` of its loss in the sum. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


@dataclass
class Plan:
    """What is known of an objective's labels before anything is computed.

    An optimiser step may spread over several processes and several batches one after another; a mean over all its
    labels needs their number beforehand. An objective whose count is not that of its target's positions has a function
    ``plan(batch, target, options, name, states) -> Plan``. If it also reads what other processes have, it says
    ``GATHERS = True``, and is called on every process as soon as it is in the recipe.

    Attributes:
        counts: [k] of this batch on this process, in double precision; the first is what the loss is divided by.
        offset: added to the divisor once per step.
        data: for ``compute``.
        totals: [k] sums over all processes and batches of the step.
    """

    counts: Tensor
    offset: float = 0.0
    data: Any = None
    totals: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.totals = self.counts

    def total(self, number: int = 0) -> float:
        """One of ``totals`` as a divisor: at least 1e-6."""
        return max(float(self.totals[number]), 1e-6)


def counts(*numbers: float | Tensor) -> Tensor:
    """[k] counts of a plan."""
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64)


def plan_places(batch: PackedBatch, target: Target, per_sequence: bool = False, valid: Tensor | None = None) -> Plan:
    """The plan for :func:`loss_term`: places, or with ``per_sequence`` sequences that have one.

    Args:
        valid: [M] whether each place counts; None: all do.
    """
    positions = target.positions if valid is None else target.positions[valid]
    if not per_sequence:
        return Plan(counts(len(positions)))
    return Plan(counts(len(batch.sequences_at(positions).unique())), offset=1e-4)


@dataclass(frozen=True)
class StartOfRun:
    """What an objective's own parameters start from (``start`` of the module that ``build_state`` gives).

    Attributes:
        means: group number to the mean embedding of its images, a unit vector.
        classes: asks the objective's teacher for [C] distributions by group number.
    """

    means: Mapping[int, Tensor]
    classes: Callable[[], Mapping[int, Tensor]]


@dataclass
class StepContext:
    """One forward pass, shared by all objectives of a step.

    Attributes:
        model: trunk and heads.
        batch: what was encoded.
        output: the trunk's output.
        positions: [S] sorted flat positions whose states the output has; None: it has all.
        shared: results that one objective leaves for another (keyed by target name).
        states_of_objectives: parameters that an objective owns, by its name.
        plans: of the step's objectives, by target name.
    """

    model: MMBertForPreTraining
    batch: PackedBatch
    output: MMBertOutput
    positions: Tensor | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    states_of_objectives: Mapping[str, Any] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)

    def states(self, positions: Tensor) -> Tensor:
        """[M] flat positions to [M, H] last states.

        Raises:
            ValueError: the step did not compute one of them (``READS`` of the objective is wrong).
        """
        assert self.output.last_hidden_state is not None
        rows = positions
        if self.positions is not None and len(positions):
            rows = torch.searchsorted(self.positions, positions)
            if not torch.equal(self.positions[rows.clamp(max=len(self.positions) - 1)], positions):
                raise ValueError("an objective reads states of positions that are not its targets'; see READS")
        return self.output.last_hidden_state.index_select(0, rows)

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


def exact(values: Tensor) -> Tensor:
    """The values in single precision, or in double where they are that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def classification_term(logits: Tensor, labels: Tensor) -> LossTerm:
    """Cross entropy of [M, C] logits to [M] class numbers, and the accuracy."""
    logits, labels = exact(logits), labels.long()
    count = torch.tensor(float(len(labels)), device=logits.device)
    right = (logits.argmax(-1) == labels).sum().float()
    return LossTerm(F.cross_entropy(logits, labels, reduction="sum"), count, {"accuracy": (right, count)})


def binary_term(logits: Tensor, labels: Tensor) -> LossTerm:
    """Binary cross entropy of [M] logits to [M] labels in 0..1, and how often a logit is on the label's side of 0."""
    logits = exact(logits)
    labels = labels.to(logits.dtype)
    count = torch.tensor(float(len(labels)), device=logits.device)
    right = ((logits > 0) == (labels > 0.5)).sum().float()
    total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return LossTerm(total, count, {"accuracy": (right, count)})


def loss_term(step: StepContext, positions: Tensor, losses: Tensor, counts: Tensor, per_sequence: bool) -> LossTerm:
    """A loss over places.

    Args:
        positions: [M] flat positions of the places.
        losses: [M] loss of each; 0 where it does not count.
        counts: [M] 1 where it counts, else 0.
        per_sequence: average within each sequence first, then over the sequences that have a place (VL-BERT's
            ``NORM_IN_BATCH_FIRST``, which adds 1e-4 to both counts).
    """
    if not per_sequence:
        return LossTerm(losses.sum(), counts.sum())
    sequences = step.batch.sequences_at(positions)
    sums = losses.new_zeros(step.batch.num_sequences).index_add(0, sequences, losses)
    places = losses.new_zeros(step.batch.num_sequences).index_add(0, sequences, counts)
    return LossTerm((sums / (places + 1e-4)).sum(), (places > 0).sum() + 1e-4)


def place_weights(step: StepContext, positions: Tensor, per_sequence: bool) -> tuple[Tensor, Tensor]:
    """[M] weights that make a sum over places the ``total`` of :func:`loss_term`, and its ``count``."""
    ones = torch.ones(len(positions), device=positions.device)
    if not per_sequence:
        return ones, ones.sum()
    sequences = step.batch.sequences_at(positions)
    places = ones.new_zeros(step.batch.num_sequences).index_add(0, sequences, ones)
    return 1 / (places[sequences] + 1e-4), (places > 0).sum() + 1e-4
