"""Class names: what the vision backbone's own classifier knows of a group, told to its images *and* its texts.

A classifier trained on photographs knows things that the corpus has no picture of. Each class gets a learned vector;
images and texts are classified among them, towards the group's distribution over classes. For groups with images it is
what the classifier, frozen and at its own resolution, says of them (distillation, Hinton et al., 2015); where class
names are texts of the group, those classes count too; and groups without any image are known by those names alone.
Images that nobody trained on then come out near the texts of their class. The vectors are not part of the saved model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmbert.model.packed import PackedBatch, Target
from mmbert.objectives._known_groups import known_term, plan_known
from mmbert.objectives.base import LossTerm, ObjectiveOptions, Plan, StartOfRun, StepContext

READS = "sequences"
NEEDS = ("embeddings",)


class Teacher(BaseModel):
    """The classifier.

    Attributes:
        encoder: a grid encoder over ImageNet's classes with its weights, as ``mmbert features`` takes it:
            ``grid:BACKBONE,image_size=160,weights=FILE``.
        temperature: above 1 spreads its distributions.
        names: share of the distribution that goes to classes which a group with images has the name of.
    """

    model_config = ConfigDict(extra="forbid")
    encoder: str
    temperature: float = Field(default=1.0, gt=0)
    names: float = Field(default=0.5, ge=0, le=1)


class Options(ObjectiveOptions):
    """``weight``; ``image_weight``: of images against texts; ``scale``: inverse temperature; ``teacher``: said once."""

    image_weight: float = 1.0
    scale: float = 16.0
    teacher: Teacher | None = None


class ClassVectors(nn.Module):
    """One learned vector per class, and what is known of each group.

    Args:
        size: width of the embeddings.
        classes: C of the teacher.
    """

    def __init__(self, size: int, classes: int = 1000) -> None:
        super().__init__()
        self.groups: Tensor
        self.known: Tensor
        self.register_buffer("groups", torch.zeros(0, dtype=torch.long), persistent=False)
        self.register_buffer("known", torch.zeros(0, classes), persistent=False)
        self.table = nn.Parameter(torch.randn(classes, size))

    @torch.no_grad()
    def start(self, run: StartOfRun) -> None:
        """Ask the teacher; each class begins at the mean embedding of the groups that show it."""
        known = run.classes()
        self.groups = torch.tensor(sorted(known), dtype=torch.long, device=self.table.device)
        self.known = torch.stack([known[g] for g in self.groups.tolist()]).to(self.table)
        pictured = [row for row, g in enumerate(self.groups.tolist()) if g in run.means]
        means = torch.stack([run.means[int(self.groups[row])] for row in pictured]).to(self.table)
        shares = self.known[pictured] / self.known[pictured].sum(0).clamp(min=1e-6)
        vectors = shares.T @ (means - means.mean(0))
        self.table.copy_(F.normalize(vectors + 1e-4 * self.table, dim=1) * self.table.shape[1] ** 0.5)


def build_state(groups: Tensor, size: int) -> ClassVectors:
    """The vectors that belong to the run."""
    return ClassVectors(size)


def plan(batch: PackedBatch, target: Target, options: Options, name: str, states: Mapping[str, Any]) -> Plan:
    """Texts and images, and of how many of each something is known."""
    return plan_known(target, states["class_names"].groups)


def compute(step: StepContext, target: Target, options: Options, name: str) -> LossTerm:
    """Cross entropy over the classes to the group's distribution, for texts and for images, each averaged."""
    vectors: ClassVectors = step.states_of_objectives["class_names"]
    table = F.normalize(vectors.table, dim=1)

    def classify(embedded: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        wanted, logits = vectors.known[rows], options.scale * embedded @ table.T
        right = (logits.argmax(1) == wanted.argmax(1)).sum().float()
        return F.cross_entropy(logits, wanted, reduction="sum"), right

    return known_term(step, target, name, vectors.groups, classify, options.image_weight)
