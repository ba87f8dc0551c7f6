"""One training run: recipe in, folder with ``best/`` and ``last/`` models, metrics, logs and resumable state out."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmbert.api.front_door import MMBert
from mmbert.data.mixture import StepDataset
from mmbert.data.records import BadRecords, Record, Source
from mmbert.data.yaml_values import read_value
from mmbert.errors import ConfigError, TrainingError, TrainingStopped
from mmbert.evaluation.examples import Examples
from mmbert.objectives.base import StartOfRun
from mmbert.objectives.class_names import Teacher
from mmbert.plugins import load, nearest
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
from mmbert.training.callbacks import AverageWeights, Intervals, KeepBest, LogLines, ProgressLine
from mmbert.training.card import MEASURES, write_card
from mmbert.training.checkpoints import (
    Manifest,
    clear_aside,
    last_checkpoint,
    read_manifest,
    write_whole,
    written_aside,
)
from mmbert.training.class_knowledge import class_distributions
from mmbert.training.corpora import evaluation_data
from mmbert.training.heads import with_task_heads
from mmbert.training.initialisation import InitReport
from mmbert.training.lora import merged
from mmbert.training.module import TrainingModule
from mmbert.training.monitoring import TensorBoard
from mmbert.training.precision import arithmetic
from mmbert.training.recipe import EvaluationRecipe, InitRecipe, ModelRecipe, Recipe, load_recipe, validation_error
from mmbert.training.setup import arguments, choose_trained, package_versions, run_length, world_rank, world_size
from mmbert.training.sharding import Sharded
from mmbert.training.stopping import StopOnSignal
from mmbert.training.trainer import PackedTrainer, Saving
from mmbert.vision.augment import build_augmentation

FIRST_STAGE = "recipe:"
METRICS = "metrics.json"
"""In a model's folder: what was measured; in a run's: that of the model to use, written last of all."""
INITIALISATION = "initialisation.json"
"""In a run's folder: what became of every tensor of the models that it was put together from."""
PASSING = (
    "accumulation",
    "log_every",
    "save_every",
    "keep",
    "keep_every",
    "report_to",
    "description",
    "parallel",
    "freed_memory",
)
"""Settings that may change when an interrupted run goes on."""
REPLACED = ("state", "best", "last")
"""Folders of weights in a run's folder, which a run writes anew."""
UNSAID = EvaluationRecipe.model_fields["metric"].default
"""The figure that decides where a recipe names none; it need not be there where nothing is measured on the way."""
CHECKED = 8
"""Records that are measured before the first step."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    _start_elsewhere(recipe.model.model_dump(mode="json"), out, "model")
    checkpoint = _checkpoint(out, recipe) if resume else None
    manifest = read_manifest(checkpoint) if checkpoint is not None else None
    if manifest is not None and manifest.complete and _is_finished(out):
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
    run = _Run(recipe, out, bert, records, queries, sharded)
    if checkpoint is None:
        run.check()
    if world_rank() == 0:
        with _failing_clearly(out):
            _prepare_folder(out, recipe, fresh=checkpoint is None)
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
            callbacks=[*run.callbacks(manifest.step if manifest is not None else 0), stop],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        if args.world_size > 1:
            set_seed(recipe.seed + args.process_index)  # the same weights everywhere, but not the same dropout
        if checkpoint is not None and run.average is not None:
            run.average.resume(checkpoint)
        with _failing_clearly(out):
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
        with _failing_clearly(out):
            metrics = run.finish(seconds, trainer.state.global_step)
    return _result(out, metrics, list(report))


def _result(
    out: Path, metrics: dict[str, Any], skipped: Sequence[tuple[str, str]] = (), *, before: bool = False
) -> TrainingResult:
    """What a finished run left behind; ``metrics`` is the content of its ``metrics.json``."""
    return TrainingResult(out, _model_to_use(out), metrics, metrics["seconds"], list(skipped), before)


def _model_to_use(out: Path) -> Path:
    """The best model of a run, the last one where nothing was measured on the way."""
    best = out / "best"
    return best if best.exists() else out / "last"


def _is_finished(out: Path) -> bool:
    """Whether a run has written its last model and, after that, its metrics."""
    return (out / METRICS).is_file() and (out / "last" / "config.json").is_file()


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


def _with_first_stage(whole: Recipe, out: Path, *, resume: bool, skip_bad: bool) -> ModelRecipe:
    """Where the model starts from another recipe's: run that one (or go on with it) and name its model."""
    recipe = whole.model
    if not isinstance(recipe.init, str) or not recipe.init.startswith(FIRST_STAGE):
        return recipe
    folder, stage = out / "first", _on_the_same_data(load_recipe(recipe.init.removeprefix(FIRST_STAGE)), whole)
    done = (folder / METRICS).is_file() and _written_recipe(folder) == stage.model_dump(mode="json")
    if not (resume and done):
        trained = train(stage, folder, resume=resume, skip_bad=skip_bad)
        if world_size() > 1 and not trained.before:
            torch.distributed.barrier()  # the first process writes the model
    return recipe.model_copy(update={"init": str(_model_to_use(folder))})


def _on_the_same_data(stage: Recipe, whole: Recipe) -> Recipe:
    """The first stage with the data of the whole run, where its recipe names none."""
    evaluation = stage.evaluation
    if evaluation.data is None:
        evaluation = evaluation.model_copy(update={"data": whole.evaluation.data})
    data = whole.data if stage.data is None else stage.data
    return stage.model_copy(update={"data": data, "evaluation": evaluation})


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


def _start_elsewhere(value: Any, out: Path, key: str) -> None:
    """Look through a section of a recipe for paths to what the run itself replaces.

    Raises:
        ConfigError: one is there.
    """
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _start_elsewhere(inner, out, f"{key}.{name}")
    elif isinstance(value, str):
        given = Path(value).resolve()
        if any(given.is_relative_to((out / name).resolve()) for name in REPLACED):
            raise ConfigError(
                f"{key}: {value} is part of the run's own folder, which the run replaces",
                where=str(out),
                hint="use another --out",
            )


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
            for stale in (*REPLACED, "tensorboard"):
                shutil.rmtree(out / stale, ignore_errors=True)
            for stale in ("log.jsonl", METRICS):
                (out / stale).unlink(missing_ok=True)
        write_whole(out / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_whole(out / "versions.json", json.dumps(package_versions(), indent=1))
    except OSError as error:
        raise TrainingError(f"cannot write: {error.strerror}", where=str(out)) from error


def _written_recipe(folder: Path) -> Any:
    """The resolved recipe that a run has left in its folder, or None."""
    written = folder / "recipe.yaml"
    return read_value(written.read_text("utf-8")) if written.is_file() else None


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


@contextlib.contextmanager
def evaluating(bert: MMBert) -> Iterator[None]:
    """Inside, the model is in eval mode."""
    training = bert.model.training
    bert.model.eval()
    try:
        yield
    finally:
        bert.model.train(training)


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Whatever is drawn inside, the numbers drawn afterwards are the same."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


RerankWeights = tuple[float, float]
"""Of match logit and of hubness."""


@contextlib.contextmanager
def reranking_by(weights: RerankWeights | None, bert: MMBert) -> Iterator[None]:
    """Inside, the model re-ranks by these weights; None: by its own."""
    config = bert.config
    own = config.rerank_weight, config.hub_weight
    config.rerank_weight, config.hub_weight = own if weights is None else weights
    try:
        yield
    finally:
        config.rerank_weight, config.hub_weight = own


class _Run:
    """Measures and saves one run's models."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        bert: MMBert,
        records: list[Record],
        queries: list[str],
        sharded: Sharded | None = None,
    ) -> None:
        self.recipe = recipe
        self.out = out
        self.bert = bert
        self.sharded = sharded
        decay = recipe.optimizer.ema
        trained = bert.model if sharded is None else sharded.module.model
        self.average = AverageWeights(trained, decay) if decay else None
        self.records = records
        self.queries = queries
        self.latest: dict[str, Any] = {}
        self.board: TensorBoard | None = None
        self.examples: Examples | None = None
        self.measurer = load(MEASURES, recipe.evaluation.measure)
        try:
            self.options = self.measurer.Options(**recipe.evaluation.measure_options)
        except ValidationError as error:
            raise validation_error(error, self.measurer.Options, "evaluation.options") from error
        if recipe.evaluation.tune_rerank and not hasattr(self.measurer, "tune"):
            raise ConfigError(f"evaluation.tune_rerank: nothing is re-ranked in {recipe.evaluation.measure}")

    @property
    def watched(self) -> str:
        """Key of the metric that decides which model is best."""
        return f"eval_{self.recipe.evaluation.metric}"

    def callbacks(self, step: int) -> list[TrainerCallback]:
        """Averaging first, so that what is measured is up to date. The run begins after ``step``."""
        best = KeepBest(self.watched, lambda _: self.save(self.out / "best"))
        chosen: list[TrainerCallback] = [self.average] if self.average is not None else []
        if world_rank() == 0:
            self.board = TensorBoard(self.out / "tensorboard", step, lambda: self.examples)
            chosen.append(self.board)
        return [*chosen, Intervals(), best, LogLines(self.out / "log.jsonl"), ProgressLine()]

    def saving(self, planned: int, start: Manifest | None, dataset: StepDataset) -> Saving:
        """What checkpoints need to know."""
        return Saving(
            keep=self.recipe.keep,
            keep_every=self.recipe.keep_every,
            versions=package_versions(),
            planned=planned,
            start=start,
            collect=[self.average.collect] if self.average is not None else [],
            everywhere=[lambda folder: dataset.write_state(folder, world_rank())],
            beside=[
                *([self.average.write] if self.average is not None else []),
                lambda folder: shutil.copy(self.out / "recipe.yaml", folder / "recipe.yaml"),
            ],
        )

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[MMBert]:
        """The model in eval mode, with averaged weights where the recipe averages.

        Of a model in shards these are the weights that :meth:`gather` found last.
        """
        if self.sharded is not None:
            with evaluating(self.bert), self.sharded.in_use():
                yield self.bert
        else:
            with evaluating(self.bert), self.average if self.average is not None else nullcontext():
                yield self.bert

    def gather(self) -> None:
        """Make ready what :meth:`measure` and :meth:`save` look at, on all processes at once."""
        if self.sharded is not None:
            self.sharded.fill(self.average.average if self.average is not None else {})

    def check(self) -> None:
        """Measure a few records before the first step, so that what cannot be measured costs no training.

        Where these few are not enough, all of them decide. Random numbers stay where they are.

        Raises:
            ConfigError: the measure gives no such figure as ``evaluation.metric``.
            MMBertError: the model or the records are not what the recipe's measure needs.
        """
        if not self.records:
            return
        with random_numbers_kept(), self.final_weights() as bert:
            few = self.records[:: math.ceil(len(self.records) / CHECKED)]
            try:
                self._try(bert, few)
            except Exception:  # few records may lack what the others have
                if len(few) == len(self.records):
                    raise
                self._try(bert, self.records)

    def _try(self, bert: MMBert, records: list[Record]) -> None:
        """Whatever is to be done with the recipe's measure."""
        evaluation = self.recipe.evaluation
        figures = self.measurer.measure(bert, records, self.options).figures
        decides = evaluation.every is not None or evaluation.metric != UNSAID
        if decides and evaluation.metric not in figures:
            close = nearest(evaluation.metric, figures)
            raise ConfigError(
                f"evaluation.metric: {evaluation.measure} gives no figure {evaluation.metric!r}",
                hint=f"did you mean {close!r}?" if close else f"it gives: {', '.join(figures)}",
            )
        if evaluation.tune_rerank:
            self.measurer.tune(bert, records, self.options)

    def measure_now(self) -> dict[str, float]:
        """In the middle of a run, on all processes at once."""
        self.gather()
        return self.measure()

    def measure(self) -> dict[str, float]:
        """What the recipe's evaluation names, on its data: figures as ``eval_…``."""
        with self.final_weights() as bert:
            bert.keep_queries(self.queries)
            measured = self.measurer.measure(bert, self.records, self.options)
            if self.board is not None and measured.show is not None:
                self.examples = measured.show()
        self.latest = measured.report
        return {f"eval_{name}": value for name, value in measured.figures.items()}

    def save(self, folder: Path) -> None:
        """Write the model with its evaluation."""
        self._write(folder, *self._tuned())

    def _tuned(self) -> tuple[dict[str, Any], RerankWeights | None]:
        """The evaluation that is stored beside the model, and tuned weights of re-ranking, with which it was done then.

        The model that is trained keeps its own, so that evaluations on the way are comparable.
        """
        if not (self.recipe.evaluation.tune_rerank and self.records):
            return self.latest, None
        with self.final_weights() as bert:
            bert.keep_queries(self.queries)
            weights = self.measurer.tune(bert, self.records, self.options)
            with reranking_by(weights, bert):
                return self.measurer.measure(bert, self.records, self.options).report, weights

    def _write(self, folder: Path, report: dict[str, Any], weights: RerankWeights | None) -> None:
        """Write a model folder aside, then move it into place."""
        with self.final_weights() as bert, reranking_by(weights, bert):
            bert.keep_queries(self.queries)
            with written_aside(folder) as new, merged(bert.model):
                bert.save_pretrained(new, dtype=DTYPES[self.recipe.save_dtype])
                shutil.copy(self.out / "recipe.yaml", new / "recipe.yaml")
                shutil.copy(self.out / "versions.json", new / "versions.json")
                data = evaluation_data(self.recipe) if self.records else None
                metrics = {"evaluation": report, "data": data}
                (new / METRICS).write_text(json.dumps(metrics, indent=1), "utf-8")
                write_card(new, self.recipe, bert, metrics)

    def finish(self, seconds: float, step: int) -> dict[str, Any]:
        """Write the last model (and measure it, where this session has not measured)."""
        report, weights = self.latest, None
        try:
            if self.records and not self.latest:
                self.measure()
                if self.board is not None:
                    self.board.show(step)
                    self.board.close()
            report, weights = self._tuned()
        finally:  # a training is not lost for a figure
            self._write(self.out / "last", report, weights)
        content = json.loads((_model_to_use(self.out) / METRICS).read_text("utf-8"))
        content["seconds"] = round(seconds, 1)
        write_whole(self.out / METRICS, json.dumps(content, indent=1))
        return content
