"""What the trainer trains: the model together with the objectives of its mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch, Target
from mmbert.model.ranks import add_up, world_size
from mmbert.model.recompute import recomputing
from mmbert.model.table_gradient import one_gradient_per_table
from mmbert.objectives.base import LossTerm, Plan, StepContext, counts
from mmbert.training.needs import check_needs, read_objective


class TrainingModule(nn.Module):
    """Forward pass and losses of one step.

    Args:
        model: trunk and heads.
        objectives: target name (``component/objective``) to the objective's options, in the order computed.
        groups: [G] sorted group numbers of the mixture, for objectives that keep something per group.

    Raises:
        ConfigError: an objective is unknown, has a wrong option, or lacks something that it needs.

    Attributes:
        reach_all: give every parameter a gradient (of zero) at each step, whatever the batch holds. Where parameters
            are sharded all processes have to exchange the same ones.
    """

    reach_all = False

    def __init__(
        self, model: MMBertForPreTraining, objectives: dict[str, dict[str, Any]], groups: Tensor | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.states = nn.ModuleDict()
        self.objectives: dict[str, tuple[ModuleType, BaseModel]] = {}
        for name, options in objectives.items():
            self.objectives[name] = read_objective(name, options)
        check_needs(model, self.objectives)
        for name, (module, _) in self.objectives.items():
            objective = name.rsplit("/", 1)[1]
            if hasattr(module, "build_state") and objective not in self.states:
                assert groups is not None
                self.states[objective] = module.build_state(groups, model.config.embedding_size)

    @property
    def config(self) -> Any:
        """The model's configuration (the trainer looks for it)."""
        return self.model.config

    @torch.no_grad()
    def plan(self, batches: Sequence[PackedBatch], total: Callable[[Tensor], Tensor] = add_up) -> list[dict[str, Plan]]:
        """Count the labels of one optimiser step.

        Args:
            batches: that are accumulated, of this process. All processes have to call this at the same time.
            total: sums [k] counts over all processes.

        Returns:
            by batch the plan of each objective, with the totals of all batches and processes.
        """
        plans = [{name: self._plan(batch, name) for name in self.objectives} for batch in batches]
        if not plans:
            return plans
        sizes = [len(plan.counts) for plan in plans[0].values()]
        local = torch.stack([torch.cat([plan.counts for plan in of_batch.values()]) for of_batch in plans]).sum(0)
        for name, totals in zip(self.objectives, total(local).split(sizes), strict=True):
            for of_batch in plans:
                of_batch[name].totals = totals
        return plans

    def _plan(self, batch: PackedBatch, name: str) -> Plan:
        module, options = self.objectives[name]
        target = batch.targets.get(name)
        if not hasattr(module, "plan"):
            return Plan(counts(0 if target is None else len(target.positions)))
        found: Plan = module.plan(batch, target or _no_target(name, batch), options, name, dict(self.states.items()))
        return found

    def forward(self, batch: PackedBatch, plans: dict[str, Plan] | None = None) -> dict[str, Any]:
        """Weighted sum of all objectives that the batch has targets for.

        Each objective is averaged over its labelled places of **all** processes and of all batches of the optimiser
        step, so that the gradient, summed over the batches and averaged over the processes, is that of the global
        batch however unevenly the labels fall.

        Args:
            plans: of this batch, from :meth:`plan`; None: the batch is the whole step.

        Returns:
            ``loss`` (scalar) and ``terms``: name to (sum, count), detached, for the log.
        """
        if plans is None:
            plans = self.plan([batch])[0]
        with recomputing(), one_gradient_per_table():
            return self._losses(batch, plans)

    def _losses(self, batch: PackedBatch, plans: dict[str, Plan]) -> dict[str, Any]:
        positions = self._positions(batch)
        output = self.model(batch, positions=positions)
        states = dict(self.states.items())
        step = StepContext(self.model, batch, output, positions, states_of_objectives=states, plans=plans)
        loss: Tensor | float = 0.0
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (_, options) in self.objectives.items():
            term = self._term(step, name)
            loss = loss + options.weight * term.total / self._divisor(name, plans[name], term)  # type: ignore[attr-defined]
            terms[name] = (term.total.detach(), term.count.detach())
            terms.update({f"{name}/{metric}": values for metric, values in term.metrics.items()})
        if self.reach_all:
            whole = [p for p in self.parameters() if p.requires_grad and not hasattr(p, "full_tensor")]
            loss = loss + 0.0 * torch.stack([p.sum() for p in whole]).sum()  # layers, sharded again, are reached anyway
        return {"loss": loss, "terms": terms}

    def _divisor(self, name: str, plan: Plan, term: LossTerm) -> float:
        """What makes the sum over batches, averaged over processes, the mean over all labels."""
        count = plan.total()
        if not hasattr(self.objectives[name][0], "plan") and float(term.count) != float(plan.counts[0]):
            if float(plan.counts[0]) != float(plan.totals[0]):
                raise ValueError(f"objective {name} does not count its target's positions: it needs a function `plan`")
            count = max(float(term.count), 1e-6)  # this batch is the whole step
        return (count + plan.offset) / world_size()

    def _term(self, step: StepContext, name: str) -> LossTerm:
        """The objective's loss; nothing without a target, unless other processes wait for what this one has."""
        module, options = self.objectives[name]
        target = step.batch.targets.get(name)
        if target is None:
            if world_size() == 1 or not getattr(module, "GATHERS", False):
                return self._nothing(step)
            target = _no_target(name, step.batch)
        found: LossTerm = module.compute(step, target, options, name)
        return found

    def _positions(self, batch: PackedBatch) -> Tensor | None:
        """[S] sorted positions whose states the batch's objectives read, or None where one of them may read any."""
        found = [batch.starts]
        for name, (module, _) in self.objectives.items():
            target = batch.targets.get(name)
            if target is None:
                continue
            reads = getattr(module, "READS", None)
            if hasattr(module, "reads"):
                found.append(module.reads(self.model, batch, target))
            elif reads is None:
                return None
            elif reads == "positions":
                found.append(target.positions)
        return torch.cat(found).unique()

    @staticmethod
    def _nothing(step: StepContext) -> LossTerm:
        assert step.output.last_hidden_state is not None
        zero = step.output.last_hidden_state.sum() * 0.0
        return LossTerm(zero, zero.detach())


def _no_target(name: str, batch: PackedBatch) -> Target:
    """A target without places."""
    none = torch.zeros(0, dtype=torch.long, device=batch.device)
    return Target(name.rsplit("/", 1)[1], none, none, {"is_image": none.bool()})
