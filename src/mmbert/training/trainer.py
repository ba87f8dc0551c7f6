"""The trainer: transformers' own, told about packed batches, objectives and this field's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from mmbert.errors import TrainingError
from mmbert.model.packed import PackedBatch
from mmbert.training.module import TrainingModule
from mmbert.training.recipe import OptimizerRecipe

NO_DECAY_NAMES = ("bias", "norm", "scale")
TABLE_NAMES = ("embeddings.words.weight", ".table")


class PackedTrainer(Trainer):
    """transformers' Trainer for :class:`TrainingModule` and packed batches.

    Args:
        model: the module.
        args: Trainer's arguments.
        optimizer_recipe: groups, schedule and clipping.
        measure: called at evaluation, gives the metrics (``eval_…``).
        **kwargs: passed on to Trainer.
    """

    def __init__(
        self,
        model: TrainingModule,
        args: TrainingArguments,
        *,
        optimizer_recipe: OptimizerRecipe,
        measure: Callable[[], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        # Trainer insists on an evaluation set where it is to evaluate; `measure` has its own.
        super().__init__(model=model, args=args, data_collator=_only, eval_dataset=[], **kwargs)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.optimizer_recipe = optimizer_recipe
        self.measure = measure
        self._sums: dict[str, Tensor] = {}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One forward pass; keeps each objective's sums for the log."""
        outputs = model(inputs)
        for name, (total, count) in outputs["terms"].items():
            pair = torch.stack([total.detach().float(), count.detach().float().to(total.device)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}",
                where=self.args.output_dir,
                hint="the last checkpoint is intact; lower optimizer.lr or use precision=fp32",
            )
        return (loss, outputs) if return_outputs else loss

    def _prepare_inputs(self, inputs: PackedBatch) -> PackedBatch:  # type: ignore[override]
        return inputs.to(self.args.device, non_blocking=True)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        """Batches come in order of their number; the order of records is the mixture's business."""
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each objective's mean since the last log."""
        if "loss" in logs and self._sums:
            for name, pair in self._sums.items():
                if self.args.world_size > 1:
                    torch.distributed.all_reduce(pair)
                total, count = pair.tolist()
                if count:
                    logs[name] = round(total / count, 5)
            self._sums.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure retrieval instead of a loss."""
        if self.measure is None:
            return {}
        metrics = self.measure()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with the vision encoder's own rate and no decay of biases, norms and single vectors."""
        if self.optimizer is None:
            recipe = self.optimizer_recipe
            assert isinstance(self.model, nn.Module)
            groups = parameter_groups(self.model, recipe)
            self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Linear warm-up, then the recipe's decay, to zero."""
        if self.lr_scheduler is None:
            shape = schedule(self.optimizer_recipe, num_training_steps)
            chosen = optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = LambdaLR(chosen, shape)
        return self.lr_scheduler


def _only(batches: list[Any]) -> Any:
    """Collation is done: the dataset's items are batches."""
    return batches[0]


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Trainable parameters by rate (vision, tables, the rest) and by whether they decay."""
    rates = {"vision": recipe.vision_lr, "table": recipe.table_lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "vision" if ".vision." in name else "table" if name.endswith(TABLE_NAMES) else "rest"
            decayed = parameter.dim() > 1 and part != "table" and not any(p in name for p in NO_DECAY_NAMES)
            groups.setdefault((part, decayed), []).append(parameter)
    found = []
    for (part, decayed), parameters in groups.items():
        rate = rates.get(part)
        decay = recipe.weight_decay if decayed else 0.0
        found.append({"params": parameters, "lr": recipe.lr if rate is None else rate, "weight_decay": decay})
    return found


def schedule(recipe: OptimizerRecipe, steps: int) -> Callable[[int], float]:
    """Factor of the peak rate at each step."""
    warmup = max(1, round(recipe.warmup * steps) if recipe.warmup_steps is None else recipe.warmup_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        if recipe.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return max(0.0, 1 - done) if recipe.schedule == "linear" else 1.0

    return factor


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, to resume from."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)
