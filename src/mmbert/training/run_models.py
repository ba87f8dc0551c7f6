"""The models of one run: measured on the way and at the end, averaged where the recipe says so, and saved."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import TrainerCallback

from mmbert.api.front_door import MMBert
from mmbert.data.mixture import StepDataset
from mmbert.data.records import Record
from mmbert.errors import ConfigError
from mmbert.evaluation.examples import Examples
from mmbert.plugins import load, nearest
from mmbert.training.callbacks import AverageWeights, Intervals, KeepBest, LogLines
from mmbert.training.card import MEASURES, write_card
from mmbert.training.checkpoints import Manifest, write_whole, written_aside
from mmbert.training.corpora import evaluation_data
from mmbert.training.lora import merged
from mmbert.training.monitoring import TensorBoard
from mmbert.training.recipe import EvaluationRecipe, Recipe, validation_error
from mmbert.training.run_folder import LOG, METRICS, RECIPE, VERSIONS, model_to_use
from mmbert.training.setup import package_versions, world_rank
from mmbert.training.sharding import Sharded
from mmbert.training.trainer import Saving

UNSAID = EvaluationRecipe.model_fields["metric"].default
"""The figure that decides where a recipe names none; it need not be there where nothing is measured on the way."""
CHECKED = 8
"""Records that are measured before the first step."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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


class RunModels:
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
        return [*chosen, Intervals(), best, LogLines(self.out / LOG)]

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
                lambda folder: shutil.copy(self.out / RECIPE, folder / RECIPE),
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
                shutil.copy(self.out / RECIPE, new / RECIPE)
                shutil.copy(self.out / VERSIONS, new / VERSIONS)
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
        content = json.loads((model_to_use(self.out) / METRICS).read_text("utf-8"))
        content["seconds"] = round(seconds, 1)
        write_whole(self.out / METRICS, json.dumps(content, indent=1))
        return content
