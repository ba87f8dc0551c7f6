"""One training run: recipe in, folder with ``best/`` and ``last/`` models, metrics, logs and resumable state out."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import mmbert
from mmbert.api.front_door import MMBert
from mmbert.data.mixture import StepDataset
from mmbert.data.records import BadRecords, Record
from mmbert.errors import TrainingError
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
from mmbert.training.initialisation import InitReport
from mmbert.training.module import TrainingModule
from mmbert.training.precision import bf16_is_faster
from mmbert.training.recipe import InitRecipe, ModelRecipe, Recipe, load_recipe, validation_error
from mmbert.training.trainer import PackedTrainer, last_checkpoint
from mmbert.vision.augment import build_augmentation

FIRST_STAGE = "recipe:"
INITIALISATION = "initialisation.json"
"""In a run's folder: what became of every tensor of the models that it was put together from."""
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
    if recipe.optimizer.vision_lr == 0 and bert.model.trunk.vision is not None:
        bert.model.trunk.vision.requires_grad_(False)
    bert.model.train()
    components = build_components(recipe, sources, bert.processor)
    records = evaluation_records(recipe, report, stored)
    steps = step_count(recipe, components, world_size())
    args = _arguments(recipe, out, steps, watched=bool(records))
    images = bert.processor.augmented_images(build_augmentation(recipe.augment))
    dataset = StepDataset(
        components,
        batches=steps * recipe.accumulation * args.world_size,
        images=images,
        seed=recipe.seed,
    )
    module = _module(recipe, bert, grouped_records(recipe, sources))
    if world_rank() == 0:
        _prepare_folder(out, recipe, fresh=checkpoint is None)
        if started is not None:
            (out / INITIALISATION).write_text(json.dumps(started.content(), ensure_ascii=False, indent=1), "utf-8")
    run = _Run(recipe, out, bert, records, typical_queries(recipe, sources))
    trainer = PackedTrainer(
        module,
        args,
        optimizer_recipe=recipe.effective_optimizer(args.world_size),
        measure=run.measure if records else None,
        train_dataset=dataset,
        callbacks=run.callbacks(),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if checkpoint is not None and run.average is not None:
        run.average.resume(checkpoint)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    seconds = time.monotonic() - start
    if not trainer.is_world_process_zero():
        return TrainingResult(out, out / "last", {}, seconds, list(report))
    metrics = run.finish(seconds)
    best = out / "best"
    return TrainingResult(out, best if best.exists() else out / "last", metrics, seconds, list(report))


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
    if checkpoint is not None and _written_recipe(out) not in (None, recipe.model_dump(mode="json")):
        raise TrainingError(
            "this folder holds an unfinished run of another recipe",
            where=str(out),
            hint="use another --out, or --no-resume to start over",
        )
    return checkpoint


def _prepare_folder(out: Path, recipe: Recipe, *, fresh: bool) -> None:
    """Make the run's folder and clear away an earlier run: late, so that wrong data or settings cost no good model.

    Raises:
        TrainingError: it is not writable.
    """
    content = recipe.model_dump(mode="json")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if fresh:
            for stale in ("state", "best", "last"):
                shutil.rmtree(out / stale, ignore_errors=True)
            for stale in ("log.jsonl", "metrics.json"):
                (out / stale).unlink(missing_ok=True)
        (out / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
        (out / "versions.json").write_text(json.dumps(_versions(), indent=1), "utf-8")
    except OSError as error:
        raise TrainingError(f"cannot write: {error.strerror}", where=str(out)) from error


def _written_recipe(folder: Path) -> Any:
    """The resolved recipe that a run has left in its folder, or None."""
    written = folder / "recipe.yaml"
    return yaml.safe_load(written.read_text("utf-8")) if written.is_file() else None


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "transformers", "accelerate", "tokenizers", "timm", "numpy", "pillow")
    found = {name: version(name) for name in packages}
    return {"mm-bert": mmbert.__version__, "python": platform.python_version(), **found}


def _module(recipe: Recipe, bert: MMBert, grouped: list[Record]) -> TrainingModule:
    """The model with its objectives; what they keep per group starts from the group's images."""
    module = TrainingModule(bert.model, objective_options(recipe), group_numbers(grouped))
    if module.states:
        bert.model.eval()
        means = group_means(bert, grouped)
        bert.model.train()
        for state in module.states.values():
            state.start(means)  # type: ignore[operator]
    return module


def world_size() -> int:
    """Processes of this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", "0"))


def _arguments(recipe: Recipe, out: Path, steps: int, *, watched: bool) -> TrainingArguments:
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and bf16_is_faster())
    every = recipe.evaluation.every
    watched = watched and every is not None
    return TrainingArguments(
        output_dir=str(out / "state"),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulation,
        max_grad_norm=recipe.optimizer.clip,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=recipe.log_every,
        logging_first_step=True,
        eval_strategy="steps" if watched else "no",
        eval_steps=every if watched else None,
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or 500,
        save_total_limit=2,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=["tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=True,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        average_tokens_across_devices=False,
    )


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

    def callbacks(self) -> list[TrainerCallback]:
        """Averaging first, so that what is measured is up to date."""
        watched = KeepBest(f"eval_{self.recipe.evaluation.metric}", lambda _: self.save(self.out / "best"))
        chosen: list[TrainerCallback] = [self.average] if self.average is not None else []
        return [*chosen, watched, LogLines(self.out / "log.jsonl"), ProgressLine()]

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
        with self.final_weights() as bert, tempfile.TemporaryDirectory(dir=self.out) as aside:
            new = Path(aside) / "model"
            bert.save_pretrained(new, dtype=DTYPES[self.recipe.save_dtype])
            shutil.copy(self.out / "recipe.yaml", new / "recipe.yaml")
            shutil.copy(self.out / "versions.json", new / "versions.json")
            data = evaluation_data(self.recipe) if self.records else None
            metrics = {"evaluation": self.latest, "data": data}
            (new / "metrics.json").write_text(json.dumps(metrics, indent=1), "utf-8")
            write_card(new, self.recipe, bert, metrics)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write the last model (and, where there was no evaluation on the way, measure it)."""
        if self.records and self.recipe.evaluation.every is None:
            self.measure()
        self.save(self.out / "last")
        best = self.out / "best"
        content = json.loads(((best if best.exists() else self.out / "last") / "metrics.json").read_text("utf-8"))
        content["seconds"] = round(seconds, 1)
        (self.out / "metrics.json").write_text(json.dumps(content, indent=1), "utf-8")
        return content
