"""Text-text matching with hard negatives from the step itself: is this the translation of that?

``itm_hard`` on pairs ``[CLS] a [SEP] b [SEP]`` of a first and a second side, as the labels of ``ttc`` in the same
component tell them apart; negatives are drawn by the embeddings that ``ttc`` left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmbert.model.packed import PackedBatch, Target, joined
from mmbert.objectives import itm_hard
from mmbert.objectives.base import LossTerm, Plan, StepContext
from mmbert.objectives.itm_hard import Kind, Options

__all__ = ["BESIDE", "GATHERS", "NEEDS", "READS", "Options", "compute", "plan"]

READS = "sequences"
NEEDS = ("match",)
BESIDE = "ttc"
GATHERS = True
OF_TEXTS = Kind("ttc", "second", joined)


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Draw the right pairs."""
    return itm_hard.plan(batch, target, options, name, states, OF_TEXTS)


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Binary cross entropy over right pairs and, for each, ``negatives`` wrong second (and first) sides."""
    return itm_hard.compute(step, target, options, name, OF_TEXTS)
