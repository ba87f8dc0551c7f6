"""The trainer: transformers' own, told about packed batches, objectives and this field's checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from mmbert.errors import TrainingError
from mmbert.evaluation.measures import merit
from mmbert.model.packed import PackedBatch
from mmbert.model.ranks import add_up
from mmbert.objectives.base import Plan
from mmbert.training.checkpoints import ASIDE, Manifest, clear_aside, commit, last_checkpoint, prune, read_manifest
from mmbert.training.clipping import clip_gradients
from mmbert.training.module import TrainingModule
from mmbert.training.optimizers import Plateau, build_optimizer, schedule
from mmbert.training.recipe import OptimizerRecipe
from mmbert.training.sharding import Sharded
from mmbert.training.stopping import StopOnSignal


@dataclass
class Saving:
    """What checkpoints need to know beside the trainer's own state.

    Attributes:
        keep, keep_every: which checkpoints stay, see :func:`~mmbert.training.checkpoints.prune`.
        versions: of the packages, for the manifest.
        planned: batches of the whole run.
        start: manifest of the checkpoint that this run goes on from.
        begun: when this session began (``time.monotonic``).
        collect: called on all processes before a checkpoint is written.
        everywhere: write further files into a checkpoint; called on all processes,
        beside: on the first one.
    """

    keep: int = 2
    keep_every: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    planned: int = 0
    start: Manifest | None = None
    begun: float = field(default_factory=time.monotonic)
    collect: list[Callable[[], object]] = field(default_factory=list)
    everywhere: list[Callable[[Path], object]] = field(default_factory=list)
    beside: list[Callable[[Path], object]] = field(default_factory=list)

    def seconds(self) -> float:
        """Of training until now, with those of earlier sessions up to the checkpoint."""
        return time.monotonic() - self.begun + (self.start.seconds if self.start is not None else 0.0)


class PackedTrainer(Trainer):
    """transformers' Trainer for :class:`TrainingModule` and packed batches.

    Args:
        model: the module.
        args: Trainer's arguments.
        optimizer_recipe: groups, schedule and clipping.
        measure: called at evaluation, gives the metrics (``eval_…``).
        watched: key of the metric that decides what is best.
        saving: about checkpoints.
        sharded: the module's shards, where it has some.
        stop: listens to signals; one of the callbacks.
        **kwargs: passed on to Trainer.
    """

    def __init__(
        self,
        model: TrainingModule,
        args: TrainingArguments,
        *,
        optimizer_recipe: OptimizerRecipe,
        measure: Callable[[], dict[str, float]] | None = None,
        watched: str = "eval_R@1",
        saving: Saving | None = None,
        sharded: Sharded | None = None,
        stop: StopOnSignal | None = None,
        **kwargs: Any,
    ) -> None:
        # Trainer insists on an evaluation set where it is to evaluate; `measure` has its own.
        super().__init__(model=model, args=args, data_collator=_only, eval_dataset=[], **kwargs)
        self.model_accepts_loss_kwargs = False
        # The module divides by the labels of all accumulated batches, so Trainer must not divide by their number.
        self.loss_is_scaled_for_ga = True
        self.compute_loss_func = self.compute_loss  # what tells so to earlier versions; `compute_loss` never calls it
        self.module = model
        self.optimizer_recipe = optimizer_recipe
        self.measure = measure
        self.watched = watched
        self.saving = saving or Saving()
        self.sharded = sharded
        self._whole: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.stop = stop or StopOnSignal()
        self._batches: list[PackedBatch] = []
        self._plans: deque[dict[str, Plan]] = deque()
        self._sums: dict[str, Tensor] = {}
        self._work = Work()

    # -- the step ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One forward pass; keeps each objective's sums for the log."""
        if not self._plans:
            self._plans.extend(self._plan())
        outputs = model(inputs, self._plans.popleft())
        self._work.note(inputs)
        for name, (total, count) in outputs["terms"].items():
            pair = torch.stack([total.detach().float(), count.detach().float().to(total.device)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise self._not_finite(f"the loss is {float(loss.detach())}")
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """Keep the step's batches until the first of them is computed: only then are the random numbers restored."""
        self._batches = batch_samples

    def _plan(self) -> list[dict[str, Plan]]:
        """Count the labels of the step on all processes, and hear whether one of them was asked to stop."""

        def total(counts: Tensor) -> Tensor:
            asked = counts.new_tensor([float(self.stop.asked is not None)])
            summed = add_up(torch.cat([counts, asked]))
            self.stop.agreed = bool(summed[-1])
            return summed[:-1]

        return self.module.plan(self._batches, total)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """Shards exchange their gradients themselves: of what accelerate puts around a module, they need autocast."""
        if self.sharded is not None and training and not getattr(model, "_is_accelerate_prepared", False):
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            model._is_accelerate_prepared = True  # type: ignore[assignment]
        found: nn.Module = super()._wrap_model(model, training, dataloader)
        return found

    def _clip_grad_norm(self, model: nn.Module, limit: float | None = None) -> Any:
        """Scale the gradient down to a norm of ``limit``, by default the recipe's; the norm before."""
        limit = self.args.max_grad_norm if limit is None else limit
        if self.sharded is not None:
            return self.sharded.clip(limit)
        if getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.unscale_gradients()
            return clip_gradients(model.parameters(), limit)
        return clip_gradients(model.parameters(), limit, getattr(self.optimizer, "optimizer", self.optimizer))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm. Where it is not finite, the run ends before it reaches the weights."""
        if grad_norm is None:
            grad_norm = self._clip_grad_norm(model, math.inf)
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        if getattr(self.accelerator, "scaler", None) is None and not torch.isfinite(torch.as_tensor(found)):
            raise self._not_finite(f"the gradient's norm is {float(found)}")
        return found

    def _not_finite(self, what: str) -> TrainingError:
        kept = last_checkpoint(Path(str(self.args.output_dir)))
        intact = f"{kept.name} is intact; " if kept is not None else ""
        return TrainingError(
            f"{what} at step {self.state.global_step + 1}",
            where=self.args.output_dir,
            hint=f"{intact}lower optimizer.lr or use precision=fp32",
        )

    def _prepare_inputs(self, inputs: PackedBatch) -> PackedBatch:  # type: ignore[override]
        return inputs.to(self.args.device, non_blocking=True)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        """Batches come in order of their number; the order of records is the mixture's business."""
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    # -- what is told -----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each objective's mean since the last log, the groups' rates, and how the work goes."""
        if "loss" in logs and self._sums:
            for name, pair in self._sums.items():
                if self.args.world_size > 1:
                    torch.distributed.all_reduce(pair)
                total, count = pair.tolist()
                if count:
                    logs[name] = round(total / count, 5)
            self._sums.clear()
            assert self.optimizer is not None
            for group in self.optimizer.param_groups:
                logs.setdefault(f"rate/{group.get('name', 'all').partition('-')[0]}", float(group["lr"]))
            logs.update(self._work.figures(self.args.world_size))
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure retrieval instead of a loss."""
        if self.measure is None:
            return {}
        metrics = self.measure()
        self.log(dict(metrics))
        shape = self.lr_scheduler.lr_lambdas[0] if isinstance(self.lr_scheduler, LambdaLR) else None
        if isinstance(shape, Plateau) and self.watched in metrics:
            shape.note(merit(self.watched, metrics[self.watched]))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- optimiser --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's; see :mod:`mmbert.training.optimizers`."""
        if self.optimizer is None:
            assert isinstance(self.model, nn.Module)
            self.optimizer = build_optimizer(self.model, self.optimizer_recipe)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Linear warm-up, then the recipe's shape."""
        if self.lr_scheduler is None:
            shape = schedule(self.optimizer_recipe, num_training_steps)
            chosen = optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = LambdaLR(chosen, shape)
        return self.lr_scheduler

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Everything that going on takes, written aside and renamed when all processes are done.

        Raises:
            TrainingError: it cannot be written; older checkpoints are as they were.
        """
        state = Path(str(self.args.output_dir))
        final = state / f"checkpoint-{self.state.global_step}"
        aside = state / ASIDE / final.name

        def prepare() -> None:
            if self.args.should_save:
                clear_aside(state)
                aside.mkdir(parents=True)

        def collect() -> None:
            for gather in self.saving.collect:
                gather()
            if self.sharded is not None:
                assert self.optimizer is not None
                self._whole = self.sharded.state(), self.sharded.optimizer_state(self.optimizer)

        def write() -> None:
            self._save(str(aside), state_dict=None if self._whole is None else self._whole[0])
            self._save_optimizer_and_scheduler(str(aside))
            self._save_scaler(str(aside))
            self._save_rng_state(str(aside))
            for further in self.saving.everywhere:
                further(aside)

        def finish() -> None:
            if self.args.should_save:
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
                for further in self.saving.beside:
                    further(aside)
                self._manifest().write(aside)
                commit(aside, final)
                clear_aside(state)
                prune(state, self.saving.keep, self.saving.keep_every)

        for part in (prepare, collect, write, finish):
            failure = None
            try:
                part()
            except (OSError, RuntimeError, SafetensorError) as error:
                failure = str(error)
            self._all_wrote(failure, state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._whole is None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self._whole[1], Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        self._whole = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.sharded is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.sharded.load(load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.sharded is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.sharded.load_optimizer(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(scheduler)

    def _all_wrote(self, failure: str | None, state: Path) -> None:
        """Wait for all processes; an error on one is one on all."""
        if not bool(add_up(torch.tensor([float(failure is not None)], dtype=torch.float64))):
            return
        if self.args.should_save:
            clear_aside(state)
        kept = last_checkpoint(state)
        raise TrainingError(
            f"cannot write a checkpoint: {failure or 'another process failed'}",
            where=str(state),
            hint="make room" + (f"; {kept.name} is intact, the same command goes on from it" if kept else ""),
        )

    def _manifest(self) -> Manifest:
        start, step = self.saving.start, self.state.global_step
        done = (start.batches, start.step) if start is not None else (0, 0)
        here = (step - done[1]) * self.args.gradient_accumulation_steps * self.args.world_size
        return Manifest(
            step=step,
            batches=done[0] + here,
            planned=self.saving.planned,
            world_size=self.args.world_size,
            seed=self.args.seed,
            versions=self.saving.versions,
            seconds=round(self.saving.seconds(), 1),
        )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random numbers go on where they were; with another number of processes they start from the seed and step."""
        if checkpoint is None:
            return
        manifest = read_manifest(Path(checkpoint))
        if manifest.world_size == self.args.world_size:
            super()._load_rng_state(checkpoint)
            return
        place = json.dumps([self.args.seed, manifest.step, self.args.process_index])
        set_seed(int.from_bytes(hashlib.blake2b(place.encode(), digest_size=4).digest(), "little"))


@dataclass
class Work:
    """How much was done since the last log."""

    positions: int = 0
    padded: int = 0
    since: float = field(default_factory=time.perf_counter)

    def note(self, batch: PackedBatch) -> None:
        """Count a batch."""
        self.positions += batch.num_positions
        self.padded += batch.num_sequences * max(batch.lengths)

    def figures(self, processes: int) -> dict[str, float]:
        """Positions per second (of all processes, taken to be alike), what padding would have added, memory."""
        now = time.perf_counter()
        found = {
            "speed/positions_per_second": round(processes * self.positions / max(now - self.since, 1e-9), 1),
            "speed/padding_saved": round(1 - self.positions / self.padded, 4) if self.padded else 0.0,
            "speed/memory_gib": round(peak_memory() / 2**30, 3),
        }
        self.positions, self.padded, self.since = 0, 0, now
        return found


def peak_memory() -> int:
    """Most bytes that this process has held: on its GPU where it has one, else in memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _only(batches: list[Any]) -> Any:
    """Collation is done: the dataset's items are batches."""
    return batches[0]
