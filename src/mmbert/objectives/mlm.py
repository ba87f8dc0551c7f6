"""Masked language modelling: predict the hidden pieces of text (Devlin et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StepContext, place_weights, plan_places

READS = "positions"
NEEDS = ("tokens",)


class Options(ObjectiveOptions):
    """``weight`` of the loss; ``train_table``: the tied decoder trains the word table; ``per_sequence``: average within
    each sequence first.

    Where contrast trains the table too and the corpus is small, switch it off: the softmax reaches every row at every
    step, and Adam turns these small, alike gradients into steps of full size that make all words alike.
    """

    train_table: bool = True
    per_sequence: bool = False


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Hidden pieces, or sequences that have one."""
    return plan_places(batch, target, options.per_sequence)


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over the vocabulary at [M] labelled positions only, in chunks of them."""
    states = step.states(target.positions)
    weights, count = place_weights(step, target.positions, options.per_sequence)
    total, right, _ = step.model.token_loss(states, target.labels, weights, train_table=options.train_table)
    places = torch.tensor(float(len(target.labels)), device=total.device)
    return LossTerm(total, count, {"accuracy": (right, places)})
