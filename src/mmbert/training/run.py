"""One training run: recipe in, folder with ``best/`` and ``last/`` models, metrics, logs and resumable state out."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmbert.api.front_door import MMBert
from mmbert.data.mixture import StepDataset
from mmbert.data.records import BadRecords, Record
from mmbert.errors import TrainingError, TrainingStopped
from mmbert.evaluation.tuning import best_rerank_weights
from mmbert.plugins import load
from mmbert.training.alignment import group_means
from mmbert.training.build import (
    build_components,
    build_model,
    evaluation_data,
    evaluation_records,
    group_numbers,
    grouped_records,
    objective_options,
    open_features,
    open_sources,
    step_count,
    typical_queries,
)
from mmbert.training.callbacks import AverageWeights, KeepBest, LogLines, ProgressLine
from mmbert.training.card import MEASURES, write_card
from mmbert.training.checkpoints import (
    Manifest,
    clear_aside,
    last_checkpoint,
    read_manifest,
    write_whole,
    written_aside,
)
from mmbert.training.initialisation import InitReport
from mmbert.training.lora import merged
from mmbert.training.module import TrainingModule
from mmbert.training.monitoring import tensorboard
from mmbert.training.recipe import InitRecipe, ModelRecipe, Recipe, load_recipe, validation_error
from mmbert.training.setup import arguments, choose_trained, package_versions, run_length, world_rank, world_size
from mmbert.training.stopping import StopOnSignal
from mmbert.training.trainer import PackedTrainer, Saving
from mmbert.vision.augment import build_augmentation

FIRST_STAGE = "recipe:"
INITIALISATION = "initialisation.json"
"""In a run's folder: what became of every tensor of the models that it was put together from."""
PASSING = ("accumulation", "log_every", "save_every", "keep", "keep_every", "report_to", "description")
"""Settings that may change when an interrupted run goes on."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder.
        model: folder of the model to use: the best one where there was an evaluation, else the last.
        metrics: its evaluation, as written to ``metrics.json``.
        seconds: training time.
        skipped: bad records left out, as (where, message).
    """

    folder: Path
    model: Path
    metrics: dict[str, Any]
    seconds: float
    skipped: list[tuple[str, str]]


def train(recipe: Recipe, out: str | Path, *, resume: bool = True, skip_bad: bool = False) -> TrainingResult:
    """Run a recipe.

    Args:
        recipe: checked settings.
        out: the run's folder; ``best/`` and ``last/`` are models, ``state/`` lets it go on.
        resume: go on from the newest complete checkpoint in ``out``, if there is one.
        skip_bad: leave bad records out and count them.

    Raises:
        MMBertError: anything wrong with recipe, data, model or the run itself.
    """
    out = Path(out)
    checkpoint = _checkpoint(out, recipe) if resume else None
    model = _with_first_stage(recipe.model, out, resume=resume, skip_bad=skip_bad)
    set_seed(recipe.seed)
    report = BadRecords(skip=skip_bad)
    stored = open_features(recipe)
    sources = open_sources(recipe, report, stored)
    started = InitReport() if isinstance(model.init, InitRecipe) else None
    bert = build_model(model, sources, recipe.seed, started, stored)
    choose_trained(recipe, bert)
    components = build_components(recipe, sources, bert.processor)
    records = evaluation_records(recipe, report, stored)
    manifest = read_manifest(checkpoint) if checkpoint is not None else None
    steps, shift = run_length(recipe, step_count(recipe, components, world_size()), manifest)
    args = arguments(recipe, out, steps, watched=bool(records))
    batches = steps * recipe.accumulation * args.world_size
    images = bert.processor.augmented_images(build_augmentation(recipe.augment))
    dataset = StepDataset(components, batches=batches, images=images, seed=recipe.seed, shift=shift)
    module = training_module(recipe, bert, grouped_records(recipe, sources))
    if world_rank() == 0:
        with _failing_clearly(out):
            _prepare_folder(out, recipe, fresh=checkpoint is None)
            if started is not None:
                write_whole(out / INITIALISATION, json.dumps(started.content(), ensure_ascii=False, indent=1))
    run = _Run(recipe, out, bert, records, typical_queries(recipe, sources))
    with StopOnSignal() as stop:
        trainer = PackedTrainer(
            module,
            args,
            optimizer_recipe=recipe.effective_optimizer(args.world_size),
            measure=run.measure if records else None,
            watched=run.watched,
            saving=run.saving(batches + shift, manifest),
            stop=stop,
            train_dataset=dataset,
            callbacks=[*run.callbacks(manifest.step if manifest is not None else 0), stop],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        if args.world_size > 1:
            set_seed(recipe.seed + args.process_index)  # the same weights everywhere, but not the same dropout
        if checkpoint is not None and run.average is not None:
            run.average.resume(checkpoint)
        start = time.monotonic()
        with _failing_clearly(out):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        seconds = time.monotonic() - start
        if stop.stopped:
            raise TrainingStopped(
                f"stopped by {stop.asked or 'a signal to another process'} after step {trainer.state.global_step}",
                where=str(out),
                hint="a checkpoint is written; the same command goes on from it",
            )
        if not trainer.is_world_process_zero():
            return TrainingResult(out, out / "last", {}, seconds, list(report))
        with _failing_clearly(out):
            metrics = run.finish(seconds)
    best = out / "best"
    return TrainingResult(out, best if best.exists() else out / "last", metrics, seconds, list(report))


@contextlib.contextmanager
def _failing_clearly(out: Path) -> Iterator[None]:
    """Turn what a full or broken disk gives into an error that says what is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        kept = last_checkpoint(out / "state")
        raise TrainingError(
            f"cannot read or write: {getattr(error, 'strerror', None) or error}",
            where=str(getattr(error, "filename", None) or out),
            hint=f"make room; {kept.name} is intact, the same command goes on from it" if kept else None,
        ) from error


def _with_first_stage(recipe: ModelRecipe, out: Path, *, resume: bool, skip_bad: bool) -> ModelRecipe:
    """Where the model starts from another recipe's: run that one (or go on with it) and name its model."""
    if not isinstance(recipe.init, str) or not recipe.init.startswith(FIRST_STAGE):
        return recipe
    folder, stage = out / "first", load_recipe(recipe.init.removeprefix(FIRST_STAGE))
    done = (folder / "metrics.json").is_file() and _written_recipe(folder) == stage.model_dump(mode="json")
    if not (resume and done):
        train(stage, folder, resume=resume, skip_bad=skip_bad)
        if world_size() > 1:
            torch.distributed.barrier()  # the first process writes the model
    best = folder / "best"
    return recipe.model_copy(update={"init": str(best if best.exists() else folder / "last")})


def _checkpoint(out: Path, recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        TrainingError: the folder holds an unfinished run of another recipe.
    """
    checkpoint = last_checkpoint(out / "state")
    written, ours = _lasting(_written_recipe(out)), _lasting(recipe.model_dump(mode="json"))
    if checkpoint is not None and written not in (None, ours):
        raise TrainingError(
            "this folder holds an unfinished run of another recipe",
            where=str(out),
            hint="use another --out, or --no-resume to start over",
        )
    return checkpoint


def _lasting(recipe: Any) -> Any:
    """The part of a recipe that must not change while a run goes on."""
    return {k: v for k, v in recipe.items() if k not in PASSING} if isinstance(recipe, dict) else recipe


def _prepare_folder(out: Path, recipe: Recipe, *, fresh: bool) -> None:
    """Make the run's folder and clear away an earlier run: late, so that wrong data or settings cost no good model.

    Raises:
        TrainingError: it is not writable.
    """
    content = recipe.model_dump(mode="json")
    try:
        out.mkdir(parents=True, exist_ok=True)
        clear_aside(out, out / "state")
        if fresh:
            for stale in ("state", "best", "last", "tensorboard"):
                shutil.rmtree(out / stale, ignore_errors=True)
            for stale in ("log.jsonl", "metrics.json"):
                (out / stale).unlink(missing_ok=True)
        write_whole(out / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_whole(out / "versions.json", json.dumps(package_versions(), indent=1))
    except OSError as error:
        raise TrainingError(f"cannot write: {error.strerror}", where=str(out)) from error


def _written_recipe(folder: Path) -> Any:
    """The resolved recipe that a run has left in its folder, or None."""
    written = folder / "recipe.yaml"
    return yaml.safe_load(written.read_text("utf-8")) if written.is_file() else None


def training_module(recipe: Recipe, bert: MMBert, grouped: list[Record]) -> TrainingModule:
    """The model with its objectives; what they keep per group starts from the group's images."""
    module = TrainingModule(bert.model, objective_options(recipe), group_numbers(grouped))
    if module.states:
        bert.model.eval()
        means = group_means(bert, grouped)
        bert.model.train()
        for state in module.states.values():
            state.start(means)  # type: ignore[operator]
    return module


class _Run:
    """Measures and saves one run's models."""

    def __init__(self, recipe: Recipe, out: Path, bert: MMBert, records: list[Record], queries: list[str]) -> None:
        self.recipe = recipe
        self.out = out
        self.bert = bert
        decay = recipe.optimizer.ema
        self.average = AverageWeights(bert.model, decay) if decay else None
        self.records = records
        self.queries = queries
        with self.evaluated() as bert:  # its size is part of what a checkpoint holds
            bert.keep_queries(queries)
        self.latest: dict[str, Any] = {}
        self.measurer = load(MEASURES, recipe.evaluation.measure)
        try:
            self.options = self.measurer.Options(**recipe.evaluation.measure_options)
        except ValidationError as error:
            raise validation_error(error, self.measurer.Options, "evaluation.options") from error

    @property
    def watched(self) -> str:
        """Key of the metric that decides which model is best."""
        return f"eval_{self.recipe.evaluation.metric}"

    def callbacks(self, step: int) -> list[TrainerCallback]:
        """Averaging first, so that what is measured is up to date. The run begins after ``step``."""
        best = KeepBest(self.watched, lambda _: self.save(self.out / "best"))
        chosen: list[TrainerCallback] = [self.average] if self.average is not None else []
        shown = [tensorboard(self.out / "tensorboard", step)] if world_rank() == 0 else []
        return [*chosen, best, LogLines(self.out / "log.jsonl"), *shown, ProgressLine()]

    def saving(self, planned: int, start: Manifest | None) -> Saving:
        """What checkpoints need to know."""
        return Saving(
            keep=self.recipe.keep,
            keep_every=self.recipe.keep_every,
            versions=package_versions(),
            planned=planned,
            start=start,
            beside=[
                *([self.average.write] if self.average is not None else []),
                lambda folder: shutil.copy(self.out / "recipe.yaml", folder / "recipe.yaml"),
            ],
        )

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[MMBert]:
        """The model in eval mode."""
        training = self.bert.model.training
        self.bert.model.eval()
        try:
            yield self.bert
        finally:
            self.bert.model.train(training)

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[MMBert]:
        """The model in eval mode, with averaged weights where the recipe averages."""
        with self.evaluated() as bert, self.average if self.average is not None else nullcontext():
            yield bert

    def measure(self) -> dict[str, float]:
        """What the recipe's evaluation names, on its data: figures as ``eval_…``."""
        with self.final_weights() as bert:
            measured = self.measurer.measure(bert, self.records, self.options)
        self.latest = measured.report
        return {f"eval_{name}": value for name, value in measured.figures.items()}

    def save(self, folder: Path) -> None:
        """Write a model folder aside, then move it into place."""
        with self.final_weights() as bert:
            bert.keep_queries(self.queries)
            if self.recipe.evaluation.tune_rerank and self.records:
                (bert.config.rerank_weight, bert.config.hub_weight), _ = best_rerank_weights(bert, self.records)
        with self.final_weights() as bert, written_aside(folder) as new, merged(bert.model):
            bert.save_pretrained(new, dtype=DTYPES[self.recipe.save_dtype])
            shutil.copy(self.out / "recipe.yaml", new / "recipe.yaml")
            shutil.copy(self.out / "versions.json", new / "versions.json")
            data = evaluation_data(self.recipe) if self.records else None
            metrics = {"evaluation": self.latest, "data": data}
            (new / "metrics.json").write_text(json.dumps(metrics, indent=1), "utf-8")
            write_card(new, self.recipe, bert, metrics)

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write the last model (and, where there was no evaluation on the way, measure it)."""
        if self.records and self.recipe.evaluation.every is None:
            self.measure()
        self.save(self.out / "last")
        best = self.out / "best"
        content = json.loads(((best if best.exists() else self.out / "last") / "metrics.json").read_text("utf-8"))
        content["seconds"] = round(seconds, 1)
        write_whole(self.out / "metrics.json", json.dumps(content, indent=1))
        return content
