"""One training run: recipe in, folder with ``best/`` and ``last/`` models, metrics, logs and resumable state out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmbert.api.front_door import MMBert
from mmbert.data.mixture import StepDataset
from mmbert.data.records import BadRecords, Source
from mmbert.errors import TrainingStopped
from mmbert.objectives.base import StartOfRun
from mmbert.objectives.class_names import Teacher
from mmbert.training.alignment import group_means
from mmbert.training.allocator import freed_memory
from mmbert.training.build import (
    build_components,
    build_model,
    evaluation_records,
    group_numbers,
    grouped_records,
    objective_options,
    open_features,
    open_sources,
    step_count,
    typical_queries,
)
from mmbert.training.callbacks import ProgressLine
from mmbert.training.checkpoints import read_manifest, write_whole
from mmbert.training.class_knowledge import class_distributions
from mmbert.training.heads import with_task_heads
from mmbert.training.initialisation import InitReport
from mmbert.training.module import TrainingModule
from mmbert.training.precision import arithmetic
from mmbert.training.recipe import InitRecipe, ModelRecipe, Recipe, load_recipe
from mmbert.training.run_folder import (
    FIRST,
    INITIALISATION,
    METRICS,
    check_starts_elsewhere,
    checkpoint_of,
    failing_clearly,
    is_finished,
    model_to_use,
    prepare_folder,
    written_recipe,
)
from mmbert.training.run_models import RunModels, evaluating
from mmbert.training.setup import (
    arguments,
    choose_trained,
    naming_services,
    package_versions,
    run_length,
    world_rank,
    world_size,
)
from mmbert.training.sharding import Sharded
from mmbert.training.stopping import StopOnSignal
from mmbert.training.trainer import PackedTrainer
from mmbert.vision.augment import build_augmentation

FIRST_STAGE = "recipe:"


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder.
        model: folder of the model to use: the best one where there was an evaluation, else the last.
        metrics: its evaluation, as written to ``metrics.json``.
        seconds: training time, that of earlier sessions included.
        skipped: bad records left out, as (where, message).
        before: the run was finished before; nothing was done.
    """

    folder: Path
    model: Path
    metrics: dict[str, Any]
    seconds: float
    skipped: list[tuple[str, str]]
    before: bool = False


def train(recipe: Recipe, out: str | Path, *, resume: bool = True, skip_bad: bool = False) -> TrainingResult:
    """Run a recipe.

    Args:
        recipe: checked settings.
        out: the run's folder; ``best/`` and ``last/`` are models, ``state/`` lets it go on.
        resume: go on from the newest complete checkpoint in ``out``, if there is one; it may be that of the end.
        skip_bad: leave bad records out and count them.

    Raises:
        ConfigError: the model starts from what the run would replace.
        MMBertError: anything wrong with recipe, data, model or the run itself.
    """
    out = Path(out)
    check_starts_elsewhere(recipe.model.model_dump(mode="json"), out, "model")
    checkpoint = checkpoint_of(out, recipe) if resume else None
    manifest = read_manifest(checkpoint) if checkpoint is not None else None
    if manifest is not None and manifest.complete and is_finished(out):
        return _result(out, json.loads((out / METRICS).read_text("utf-8")), before=True)
    model = _with_first_stage(recipe, out, resume=resume, skip_bad=skip_bad)
    set_seed(recipe.seed)
    report = BadRecords(skip=skip_bad)
    stored = open_features(recipe)
    sources = open_sources(recipe, report, stored)
    model = with_task_heads(model, recipe, sources)
    started = InitReport() if isinstance(model.init, InitRecipe) else None
    bert = build_model(model, sources, recipe.seed, started, stored)
    choose_trained(recipe, bert)
    components = build_components(recipe, sources, bert.processor)
    records = evaluation_records(recipe, report, stored)
    steps, shift = run_length(recipe, step_count(recipe, components, world_size()), manifest)
    args = arguments(recipe, out, steps, watched=bool(records))
    batches = steps * recipe.accumulation * args.world_size
    images = bert.processor.augmented_images(build_augmentation(recipe.augment))
    dataset = StepDataset(components, batches=batches, images=images, seed=recipe.seed, shift=shift)
    if checkpoint is not None:
        dataset.resume(checkpoint)
    module = training_module(recipe, bert, sources)
    queries = typical_queries(recipe, sources)
    with evaluating(bert):  # the size of what is kept is part of a checkpoint
        bert.keep_queries(queries)
    sharded = Sharded(module, args.device) if recipe.parallel == "fsdp" and args.world_size > 1 else None
    if sharded is None:  # now, not by the trainer: the average of the weights has to lie where they do
        module.to(args.device)
    run = RunModels(recipe, out, bert, records, queries, sharded)
    if checkpoint is None:
        run.check()
    if world_rank() == 0:
        with failing_clearly(out):
            prepare_folder(out, recipe, package_versions(), fresh=checkpoint is None)
            if started is not None:
                write_whole(out / INITIALISATION, json.dumps(started.content(), ensure_ascii=False, indent=1))
    computing = arithmetic(tf32=recipe.tf32, deterministic=recipe.deterministic)
    with StopOnSignal() as stop, freed_memory(recipe.freed_memory), computing:
        saving = run.saving(batches + shift, manifest, dataset)
        trainer = PackedTrainer(
            module,
            args,
            optimizer_recipe=recipe.effective_optimizer(args.world_size),
            measure=run.measure_now if records else None,
            sharded=sharded,
            watched=run.watched,
            saving=saving,
            stop=stop,
            train_dataset=dataset,
            callbacks=[*run.callbacks(manifest.step if manifest is not None else 0), ProgressLine(run.watched), stop],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        if args.world_size > 1:
            set_seed(recipe.seed + args.process_index)  # the same weights everywhere, but not the same dropout
        if checkpoint is not None and run.average is not None:
            run.average.resume(checkpoint)
        with failing_clearly(out), naming_services(recipe):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        seconds = saving.seconds()
        if stop.stopped:
            raise TrainingStopped(
                f"stopped by {stop.asked or 'a signal to another process'} after step {trainer.state.global_step}",
                where=str(out),
                hint="a checkpoint is written; the same command goes on from it",
            )
        run.gather()
        if not trainer.is_world_process_zero():
            return TrainingResult(out, out / "last", {}, seconds, list(report))
        with failing_clearly(out):
            metrics = run.finish(seconds, trainer.state.global_step)
    return _result(out, metrics, list(report))


def _result(
    out: Path, metrics: dict[str, Any], skipped: Sequence[tuple[str, str]] = (), *, before: bool = False
) -> TrainingResult:
    """What a finished run left behind; ``metrics`` is the content of its ``metrics.json``."""
    return TrainingResult(out, model_to_use(out), metrics, metrics["seconds"], list(skipped), before)


def _with_first_stage(whole: Recipe, out: Path, *, resume: bool, skip_bad: bool) -> ModelRecipe:
    """Where the model starts from another recipe's: run that one (or go on with it) and name its model."""
    recipe = whole.model
    if not isinstance(recipe.init, str) or not recipe.init.startswith(FIRST_STAGE):
        return recipe
    folder, stage = out / FIRST, _on_the_same_data(load_recipe(recipe.init.removeprefix(FIRST_STAGE)), whole)
    done = (folder / METRICS).is_file() and written_recipe(folder) == stage.model_dump(mode="json")
    if not (resume and done):
        trained = train(stage, folder, resume=resume, skip_bad=skip_bad)
        if world_size() > 1 and not trained.before:
            torch.distributed.barrier()  # the first process writes the model
    return recipe.model_copy(update={"init": str(model_to_use(folder))})


def _on_the_same_data(stage: Recipe, whole: Recipe) -> Recipe:
    """The first stage with the data of the whole run, where its recipe names none."""
    evaluation = stage.evaluation
    if evaluation.data is None:
        evaluation = evaluation.model_copy(update={"data": whole.evaluation.data})
    data = whole.data if stage.data is None else stage.data
    return stage.model_copy(update={"data": data, "evaluation": evaluation})


def training_module(recipe: Recipe, bert: MMBert, sources: dict[str, Source]) -> TrainingModule:
    """The model with its objectives; what they keep per group starts from the group's images and names."""
    grouped = grouped_records(recipe, sources)
    pictured = [record for record in grouped if record.image is not None]
    module = TrainingModule(bert.model, objective_options(recipe), group_numbers(pictured))
    if module.states:
        bert.model.eval()
        means = group_means(bert, pictured)
        bert.model.train()
        start = StartOfRun(means, partial(class_distributions, _teacher(module), grouped))
        for state in module.states.values():
            state.start(start)  # type: ignore[operator]
    return module


def _teacher(module: TrainingModule) -> Teacher | None:
    """The teacher that one of the run's objectives names."""
    named = (getattr(options, "teacher", None) for _, options in module.objectives.values())
    return next((teacher for teacher in named if teacher is not None), None)
