"""What the trainer trains: the model together with the objectives of its mixture."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from mmbert.errors import ConfigError
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch
from mmbert.objectives.base import LossTerm, StepContext
from mmbert.plugins import load
from mmbert.training.recipe import validation_error


class TrainingModule(nn.Module):
    """Forward pass and losses of one step.

    Args:
        model: trunk and heads.
        objectives: target name (``component/objective``) to the objective's options, in the order computed.
        groups: [G] sorted group numbers of the mixture, for objectives that keep something per group.
    """

    def __init__(
        self, model: MMBertForPreTraining, objectives: dict[str, dict[str, Any]], groups: Tensor | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.states = nn.ModuleDict()
        self.objectives: dict[str, tuple[ModuleType, BaseModel]] = {}
        for name, options in objectives.items():
            objective = name.rsplit("/", 1)[1]
            module = load("mmbert.objectives", objective)
            if hasattr(module, "build_state") and objective not in self.states:
                assert groups is not None
                self.states[objective] = module.build_state(groups, model.config.embedding_size)
            try:
                self.objectives[name] = (module, module.Options(**options))
            except ValidationError as error:
                raise validation_error(error, module.Options, f"objective {name}") from error
            except TypeError as error:
                raise ConfigError(f"objective {name}: {error}") from error

    @property
    def config(self) -> Any:
        """The model's configuration (the trainer looks for it)."""
        return self.model.config

    def forward(self, batch: PackedBatch) -> dict[str, Any]:
        """Weighted sum of all objectives that the batch has targets for.

        Each objective is averaged over its labelled places on **all** ranks, so that the gradient is that of the
        global batch however unevenly the labels fall.

        Returns:
            ``loss`` (scalar) and ``terms``: name to (sum, count), detached, for the log.
        """
        positions = self._positions(batch)
        output = self.model(batch, positions=positions)
        step = StepContext(self.model, batch, output, positions, states_of_objectives=dict(self.states.items()))
        loss: Tensor | float = 0.0
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (module, options) in self.objectives.items():
            target = batch.targets.get(name)
            term = module.compute(step, target, options, name) if target is not None else self._nothing(step)
            loss = loss + options.weight * term.total / _global_mean_divisor(term.count)  # type: ignore[attr-defined]
            terms[name] = (term.total.detach(), term.count.detach())
            terms.update({f"{name}/{metric}": values for metric, values in term.metrics.items()})
        return {"loss": loss, "terms": terms}

    def _positions(self, batch: PackedBatch) -> Tensor | None:
        """[S] sorted positions whose states the batch's objectives read, or None where one of them may read any."""
        found = [batch.starts]
        for name, (module, _) in self.objectives.items():
            target = batch.targets.get(name)
            reads = getattr(module, "READS", None)
            if target is not None and reads is None:
                return None
            if target is not None and reads == "positions":
                found.append(target.positions)
        return torch.cat(found).unique()

    @staticmethod
    def _nothing(step: StepContext) -> LossTerm:
        assert step.output.last_hidden_state is not None
        zero = step.output.last_hidden_state.sum() * 0.0
        return LossTerm(zero, zero.detach())


def _global_mean_divisor(count: Tensor) -> Tensor:
    """Divisor that makes the average over ranks of (local sum / divisor) the mean over all places."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        count = count.detach().to(torch.float32, copy=True)  # one type on all ranks, whatever made the count
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1e-6) if torch.is_floating_point(count) else count.clamp(min=1)
