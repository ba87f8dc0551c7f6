"""Recipes: every setting of a training run, typed. Unknown keys are errors that name the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from mmbert.data.yaml_values import read_setting, read_value
from mmbert.errors import ConfigError, said_by_check
from mmbert.plugins import nearest
from mmbert.training.optimizer_recipe import LoraRecipe, OptimizerRecipe, Section

__all__ = ["LoraRecipe", "OptimizerRecipe", "Recipe", "check_recipe", "load_recipe", "recipe_names", "validation_error"]

RECIPES = Path(__file__).parent.parent / "recipes"
ELEMENTWISE = ("adamw", "adam", "sgd")
"""Optimisers whose rule looks at single numbers, so that each process can apply it to its own."""


class TokenizerRecipe(Section):
    """The tokenizer, and what is added to it; word rows that are there already stay as they are, bit by bit.

    Attributes:
        path: folder or hub id; else that of ``model.init``, else one is trained on the sources' texts.
        vocab_size: entries of a trained one.
        kind: of a trained one.
        temperature: of a trained one: a language of n texts counts as n^(1/T), so that small ones are not drowned.
        lower_case: lower-case and strip accents, as VL-BERT did even with cased vocabularies (word pieces only).
        add_special: tokens that are never cut, such as ``[STOP]``; their rows start at random.
        add_pieces: entries for new languages: a list, or a file with one a line (continued pieces begin with ``##``
            in word pieces). Rows start as the mean of the pieces that they were cut into before.
    """

    path: str | None = None
    vocab_size: int = Field(default=16000, ge=300)
    kind: Literal["unigram", "bpe", "wordpiece"] = "unigram"
    temperature: float = Field(default=1.0, ge=1)
    lower_case: bool = False
    add_special: list[str] = Field(default_factory=list)
    add_pieces: list[str] | str = Field(default_factory=list)


class HeadStart(Section):
    """Where a named head starts, from what ``model.init`` loads.

    Attributes:
        transform: its layers before the output start as those of this pre-training head, or of the pooler.
        match: its output starts as the match head's log odds (of a two-output head: row 1 - row 0).
        words: a file with one answer a line; output row i starts as the mean of answer i's word pieces. True: the
            head's own labels.
        vectors: of a pointing head: each output starts as the embedding head's vector of its label, and the regions'
            vectors as those of images, so that a region's name is its most probable answer from the start.
        points: what points at regions in a pointing head starts as this head of a model that grounds expressions, or
            (``match``) as the pooler and the match head.
    """

    transform: Literal["token_head", "region_head", "pooler"] | None = None
    match: bool = False
    words: Literal[True] | str | None = None
    vectors: bool = False
    points: str | None = None

    @model_validator(mode="after")
    def _one_output(self) -> Self:
        said = [name for name in ("match", "words", "vectors") if getattr(self, name) not in (None, False)]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} both say where the output starts")
        return self


class InitRecipe(Section):
    """Weights put together from several models (VL-BERT's partial loading).

    Each of ``text`` and ``model`` is a text encoder (BERT, RoBERTa and the like), one of our models, or a ``.model``
    file of VL-BERT or MM-BERT; a folder, a file or a hub id.

    Attributes:
        text: loaded first, as far as it goes.
        model: loaded over it; of several, the later win.
        mode: ``plain``: every tensor of ``model``; ``skip``: all but word vectors and the vocabulary bias (for another
            vocabulary); ``hybrid``: what belongs to vision, positions and segments; the rest stays with ``text``.
        heads: by head, where it starts.
        segments: segment row to the row that it starts as (``{1: 0}``: VL-BERT's VCR).
    """

    text: str | None = None
    model: str | list[str] = Field(default_factory=list)
    mode: Literal["plain", "skip", "hybrid"] = "plain"
    heads: dict[str, HeadStart] = Field(default_factory=dict)
    segments: dict[int, int] = Field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """``model`` as a list."""
        return [self.model] if isinstance(self.model, str) else self.model

    def __str__(self) -> str:
        """For model cards: the parts in their order."""
        text = [self.text] if self.text is not None else []
        return ", then ".join([*text, *(f"{name} ({self.mode})" for name in self.models)])

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        if self.text is None and not self.models:
            raise ValueError("give text, model or both")
        if self.mode != "plain" and not self.models:
            raise ValueError(f"mode {self.mode} is about model, which is missing")
        return self


FORMS = ("a name", "parts")
"""Forms that ``init`` has."""


def _form(value: Any) -> str:
    return FORMS[0] if isinstance(value, str) else FORMS[1]


Init = Annotated[Annotated[str, Tag(FORMS[0])] | Annotated[InitRecipe, Tag(FORMS[1])], Discriminator(_form)]


class ModelRecipe(Section):
    """The model: start from ``init`` (a model folder or name, or parts of several), or from ``config`` alone.

    Attributes:
        init: a saved model; ``config`` may then only change dropout and the like. ``recipe:NAME`` trains that recipe
            first, in the folder ``first`` of the run, and starts from its best model. Or parts, see
            :class:`InitRecipe`: sizes then come from the parts as far as ``config`` does not say them.
        config: keys of MMBertConfig.
        backbone_weights: checkpoint of the vision backbone, or ``package:NAME`` for the file that the Python package
            of that name carries.
        tokenizer: for fresh models.
        whiten_regions: start region vectors as whitened principal components of the training images' features
            (needs ``visual_size`` = 2 x ``hidden_size``).
        regress_regions: start region vectors as what ridge regression predicts of an image's texts instead (needs the
            same); with ``mean_of_words``, words then start from the texts' vectors too.
        align_texts: start the text projection by regression onto the images' embeddings.
        mean_of_words: start the first layer as the mean over words of this standard deviation.
    """

    init: Init | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    backbone_weights: str | None = None
    whiten_regions: bool = False
    regress_regions: bool = False
    mean_of_words: float | None = Field(default=None, gt=0)
    align_texts: bool = False
    tokenizer: TokenizerRecipe = Field(default_factory=TokenizerRecipe)


class ComponentRecipe(Section):
    """One part of the mixture.

    Attributes:
        data: options of the source (``source: starter``, ``split: train`` ...) or a string as on the command line;
            None takes the run's ``data``. Options without ``source`` change the run's; ``{root}`` in a path is the
            run's ``data.root``.
        task: name of the task.
        options: the task's options.
        objectives: objective name to its options (``weight`` among them).
        tokens: positions per step and process.
        records: records per step and process, at most.
        alike: batches that are drawn together and dealt out by length; see :class:`~mmbert.data.mixture.Component`.
    """

    data: str | dict[str, Any] | None = None
    task: str
    options: dict[str, Any] = Field(default_factory=dict)
    objectives: dict[str, dict[str, Any]]
    tokens: int = Field(default=4096, ge=1)
    records: int | None = Field(default=None, ge=1)
    alike: int = Field(default=1, ge=1)


class EvaluationRecipe(Section):
    """What decides which checkpoint is best.

    Attributes:
        data: where to measure, written as a component's; None takes the split ``validation`` of the run's ``data``.
        measure: what is measured: a module of ``mmbert.evaluation.measures``, such as ``retrieval`` or ``translation``.
        options: its options.
        mode: of retrieval (an option of it): embed, match or rerank.
        metric: the figure that decides, of those that the measure gives (see ``Measured``).
        every: steps between evaluations; None evaluates at the end of training only.
        tune_rerank: choose the weights of match logit and hubness in re-ranking on this data whenever a model is saved.
        query_bank: keep the vectors of so many captions of the training data with the model, drawn at random, to tell
            by them images that are near to everything (see ``EmbeddingHead.hubness``).
    """

    data: str | dict[str, Any] | None = None
    measure: str = "retrieval"
    options: dict[str, Any] = Field(default_factory=dict)
    mode: Literal["embed", "match", "rerank"] | None = None
    metric: str = "R@1"
    every: int | None = Field(default=None, ge=1)
    tune_rerank: bool = False
    query_bank: int = Field(default=0, ge=0)

    @property
    def measure_options(self) -> dict[str, Any]:
        """Options of the measure; ``mode`` is one that recipes may give by itself."""
        return ({} if self.mode is None else {"mode": self.mode}) | self.options


class Recipe(Section):
    """A whole run.

    Attributes:
        name: what it is called.
        description: one line for lists and model cards.
        license: of the model, for its card.
        seed: decides everything random.
        steps: optimiser steps; or
        epochs: passes over the longest component, and
        min_steps: at least so many steps.
        published: the configuration of VL-BERT or MM-BERT that the recipe stands for. It belongs to the one file:
            recipes that extend it do not have it, nor does the resolved recipe of a run.
        data: the run's own data, for components that name none. Has it a split ``train``, only that is trained on; has
            it a split ``validation``, that decides which checkpoint is best (where ``evaluation`` names no data).
            ``data.root`` says where a corpus that is named lies (see ``mmbert.training.corpora``).
        components: the mixture by name.
        features: a region store, or several of one encoder, in which images are looked up instead of being opened;
            see docs/features.md.
        augment: options of the image augmentation; None leaves images as they are.
        precision: ``auto`` measures at the start whether bf16 is faster here; ``fp16`` (GPUs) scales the loss.
        tf32: let GPUs multiply fp32 matrices in TF32.
        deterministic: let GPUs compute the same bits each time, as CPUs do; slower.
        parallel: with several processes, ``ddp``: each has the whole model; ``fsdp``: each has a part of the weights,
            gradients and optimiser states (PyTorch's FSDP2). A single process has all of it either way.
        compile: torch.compile the layers' position-wise half.
        freed_memory: of large tensors on a CPU: ``kept`` for the next step, which is quickest, or ``returned`` to the
            system at once, which holds least.
        activation_checkpointing: keep only the layers' inputs and compute the rest again in the backward pass.
        save_dtype: of the stored weights.
        accumulation: batches per step and process.
        log_every, save_every: in steps; None saves only best and last.
        keep: checkpoints to go on from that are kept, the newest ones;
        keep_every: and those at multiples of so many steps.
        report_to: services beside TensorBoard, through transformers' own callbacks.
    """

    name: str
    description: str = ""
    license: str | None = None
    published: str | None = Field(default=None, exclude=True)
    seed: int = 1
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    min_steps: int = Field(default=1, ge=1)
    data: str | dict[str, Any] | None = None
    model: ModelRecipe = Field(default_factory=ModelRecipe)
    components: dict[str, ComponentRecipe] = Field(min_length=1)
    features: str | list[str] | None = None
    augment: dict[str, Any] | None = None
    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe)
    evaluation: EvaluationRecipe = Field(default_factory=EvaluationRecipe)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    tf32: bool = False
    deterministic: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    freed_memory: Literal["kept", "returned"] = "kept"
    activation_checkpointing: bool = False
    save_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    accumulation: int = Field(default=1, ge=1)
    log_every: int = Field(default=10, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)
    keep_every: int | None = Field(default=None, ge=1)
    report_to: list[Literal["wandb", "mlflow", "comet_ml", "clearml", "swanlab", "trackio"]] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _length(self) -> Self:
        if self.steps is None and self.epochs is None:
            raise ValueError("give either steps or epochs")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "give either steps or epochs: with one of them, set the other, which the recipe has, to null "
                f"(epochs=null steps={self.steps}, or steps=null epochs={self.epochs:g})"
            )
        return self

    @model_validator(mode="after")
    def _samples_are_known(self) -> Self:
        if self.optimizer.lr_per_sample is not None:
            uncounted = [name for name, component in self.components.items() if component.records is None]
            if uncounted:
                raise ValueError(f"optimizer.lr_per_sample needs components.{uncounted[0]}.records")
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        if self.parallel == "fsdp":
            if self.optimizer.lora is not None:
                raise ValueError("parallel fsdp and optimizer.lora: adapters are too small to be shared out; take ddp")
            if self.optimizer.name not in ELEMENTWISE:
                able = ", ".join(ELEMENTWISE)
                raise ValueError(
                    f"parallel fsdp: optimizer.name {self.optimizer.name} needs whole matrices; take {able}"
                )
            if self.precision == "fp16":
                raise ValueError("parallel fsdp: no loss scaling over shards; take precision bf16, auto or fp32")
            if self.compile:
                raise ValueError("parallel fsdp: layers that are gathered as they run are not compiled; take ddp")
        return self

    def effective_optimizer(self, processes: int) -> OptimizerRecipe:
        """The optimizer with its rate for a run on so many processes."""
        if self.optimizer.lr_per_sample is None:
            return self.optimizer
        samples = sum(component.records or 0 for component in self.components.values())
        rate = self.optimizer.lr_per_sample * samples * self.accumulation * processes
        return self.optimizer.model_copy(update={"lr": rate})


def recipe_files() -> dict[str, Path]:
    """The recipes that ship with the package, by name: ours first, then those in folders (``published``).

    Files whose names begin with ``_`` are parts that recipes extend.
    """
    found = sorted(RECIPES.rglob("*.yaml"), key=lambda path: (path.parent != RECIPES, path.parent, path.stem))
    return {path.stem: path for path in found if not path.stem.startswith("_")}


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return list(recipe_files())


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, resolve ``extends:``, apply ``key.path=value`` overrides, check every key.

    Args:
        name_or_path: a shipped recipe's name, or a YAML file.
        overrides: values are read as YAML (``steps=100``, ``components.main.options.languages=[de, fr]``).

    Raises:
        ConfigError: no such recipe, broken YAML, an override that is none or undoes one before it, or a key that is
            unknown (the nearest is named) or invalid.
    """
    content = _read(name_or_path, seen=())
    said: dict[str, Any] = {}
    for override in overrides:
        key, value = read_setting(override, example="steps=100")
        _check_both_hold(said, key)
        _set(content, key.split("."), value)
        said[key] = value
    return check_recipe(content, where=name_or_path)


def check_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe given as nested dicts."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise validation_error(error, Recipe, where) from error


def validation_error(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """The first problem that pydantic found, as one line with the nearest known key."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if part not in FORMS)
    if first["type"] != "extra_forbidden":
        return ConfigError(f"{path or 'recipe'}: {said_by_check(first)}", where=where)
    known = _known_keys(model, first["loc"][:-1])
    close = nearest(str(first["loc"][-1]), known)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known))}"
    return ConfigError(f"unknown key {path!r}", where=where, hint=hint)


def _known_keys(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """Fields of the section that ``path`` leads to."""
    section: Any = model
    for part in path:
        fields = getattr(section, "model_fields", {})
        if str(part) in fields:
            section = fields[str(part)].annotation
            section = next(_sections(section), section)
    return list(getattr(section, "model_fields", {}))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _read(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The content of a shipped recipe, of a file beside the recipe that extends it, or of a file."""
    path = _find(name_or_path, Path(seen[-1]).parent if seen else None)
    if str(path) in seen:
        raise ConfigError(f"extends itself: {' -> '.join((*seen, str(path)))}", where=str(path))
    try:
        content = read_value(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from error
    if not isinstance(content, dict):
        raise ConfigError("a recipe is a mapping of keys to values", where=str(path))
    parents = content.pop("extends", None) or []
    base: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        base = _merge(base, _read(str(parent), (*seen, str(path))))
    base.pop("published", None)
    return _merge(base, content)


def _find(name_or_path: str, beside: Path | None) -> Path:
    """The file of a recipe."""
    shipped = recipe_files()
    near = [beside / f"{name_or_path}.yaml", beside / name_or_path] if beside is not None else []
    places = [*([shipped[name_or_path]] if name_or_path in shipped else []), *near, Path(name_or_path)]
    if beside is not None:  # parts that ship, but are no recipes by themselves
        places.append(RECIPES / f"{name_or_path}.yaml")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        close = nearest(name_or_path, shipped)
        ours = ", ".join(name for name, place in shipped.items() if place.parent == RECIPES)
        hint = f"did you mean {close!r}?" if close else f"shipped: {ours}, and those of mmbert train --list"
        raise ConfigError(f"no recipe {name_or_path!r}", hint=hint)
    return path


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``, section by section; a section of another ``kind`` replaces the old one as a whole."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, Mapping):
            # Options of another kind of thing (vision encoder, head, corpus) mean nothing to the new one.
            same = all(value.get(what, old.get(what)) == old.get(what) for what in ("kind", "source"))
            merged[key] = _merge(old, value) if same else value
    return merged


def _check_both_hold(said: Mapping[str, Any], key: str) -> None:
    """A part of what was given whole in the same command (``data=photos data.root=more``) would take its place."""
    for whole, value in said.items():
        if key.startswith(f"{whole}.") and value is not None and not isinstance(value, dict):
            raise ConfigError(
                f"{key} would take the place of {whole}={value}",
                hint=f"give one of the two, or all parts: {whole}.NAME=VALUE",
            )


def _set(content: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = content.get(part)
        if not isinstance(inner, dict):
            inner = content[part] = {}
        content = inner
    content[path[-1]] = value
