"""Contrast with learned proxies: every text and image is told apart from *all* groups of the corpus at each step.

A table holds one vector per group; texts and images are classified among them (Movshovitz-Attias et al., 2017,
"No fuss distance metric learning using proxies"). Negatives are never stale, since the table is learned with the
rest. For corpora of some thousand groups with many texts each; the table is not part of the saved model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives._known_groups import known_term, plan_known
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StartOfRun, StepContext

READS = "sequences"
NEEDS = ("embeddings",)


class Options(ObjectiveOptions):
    """``weight``; ``image_weight``: of images against texts; ``scale``: inverse temperature; ``label_smoothing``."""

    image_weight: float = 1.0
    scale: float = 16.0
    label_smoothing: float = 0.1


class Proxies(nn.Module):
    """One learned vector per group that has images.

    Args:
        groups: [G] sorted distinct group numbers.
        size: width of the embeddings.
    """

    def __init__(self, groups: Tensor, size: int) -> None:
        super().__init__()
        self.groups: Tensor
        self.register_buffer("groups", groups)
        self.table = nn.Parameter(torch.randn(len(groups), size))

    def forward(self, vectors: Tensor, scale: float) -> Tensor:
        """[n, D] unit vectors to [n, G] logits."""
        return scale * vectors @ F.normalize(self.table, dim=1).T

    @torch.no_grad()
    def start(self, run: StartOfRun) -> None:
        """Begin groups that have a mean embedding (a unit vector) there instead of at random, as long as those."""
        for row, group in enumerate(self.groups.tolist()):
            if group in run.means:
                self.table[row] = run.means[group] * self.table.shape[1] ** 0.5


def build_state(groups: Tensor, size: int) -> Proxies:
    """The table that belongs to the run."""
    return Proxies(groups, size)


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Texts and images, and how many of each have a proxy."""
    return plan_known(target, states["proxy"].groups)


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over all groups, for the texts and for the images of the step, each averaged.

    Texts of groups without images (and so without a proxy) do not count.
    """
    proxies: Proxies = step.states_of_objectives["proxy"]

    def classify(vectors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = proxies(vectors, options.scale)
        loss = F.cross_entropy(logits, rows, label_smoothing=options.label_smoothing, reduction="sum")
        return loss, (logits.argmax(1) == rows).sum().float()

    return known_term(step, target, name, proxies.groups, classify, options.image_weight)
