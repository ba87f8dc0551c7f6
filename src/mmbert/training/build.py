"""From a recipe to the things it names: tokenizer, model, mixture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from mmbert.api.features import weights_file
from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.api.usable import usable_records
from mmbert.compat.vocabularies import lower_cased, open_tokenizer
from mmbert.data.images import identity
from mmbert.data.mixture import Component, MixturePart
from mmbert.data.records import BadRecords, ImageRef, Record, Source
from mmbert.data.region_input import RecordsWithRegions, RegionInput
from mmbert.data.sources import open_data, parse_data
from mmbert.data.sources.joined import JoinedSource
from mmbert.data.sources.stream import StreamedSource
from mmbert.data.streaming import StreamedComponent
from mmbert.data.text_files import texts_of_sources
from mmbert.errors import ConfigError, DataError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining, build_vision
from mmbert.plugins import load, nearest
from mmbert.tasks.base import group_number
from mmbert.text.coverage import sampled
from mmbert.text.tokenizer import train_tokenizer
from mmbert.training.alignment import align_texts, regress_regions, start_as_mean_of_words, whiten_regions
from mmbert.training.corpora import component_data, evaluation_data, run_data
from mmbert.training.initialisation import InitReport, Parts
from mmbert.training.needs import check_labels
from mmbert.training.recipe import ComponentRecipe, ModelRecipe, Recipe, validation_error
from mmbert.training.vocabulary import extend_vocabulary

CHANGEABLE = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "region_dropout",
    "rerank_weight",
    "rerank_views",
    "hub_weight",
    "heads",
)
"""Configuration keys that may differ from the model that training starts from."""

HELD_OUT = ("validation", "test")
"""Splits that a run's own data is never trained on."""


def open_features(recipe: Recipe) -> RegionInput | None:
    """The region stores that the recipe names, if it does.

    Raises:
        DataError: one cannot be opened, or they do not go together.
        ConfigError: images are augmented too.
    """
    if recipe.features is None:
        return None
    if recipe.augment is not None:
        raise ConfigError("stored regions cannot be augmented", hint="leave out augment, or features")
    wanted = any("mvrc" in component.objectives for component in recipe.components.values())
    images = RegionInput(recipe.features, classes=wanted)
    if wanted and not images.layout.num_classes:
        raise ConfigError(
            "objective mvrc needs class distributions, and the region store has none",
            where=images.stores[0].path,
            hint="choose mvfr, or extract with an encoder that gives classes",
        )
    return images


def open_sources(
    recipe: Recipe, report: BadRecords | None = None, images: RegionInput | None = None
) -> dict[str, Source]:
    """The source of each component; equal descriptions share one.

    Where ``report`` leaves bad records out, every image is opened once: batches are planned before any is read. With
    ``images``, they are looked up there instead.

    Raises:
        ConfigError: a component names no data, and neither does the run.
        DataError: a bad record, unless ``report`` skips it; or no record is there to train on.
    """
    report = report if report is not None else BadRecords()
    bad = BadRecords(skip=report.skip)
    opened: dict[str, Source] = {}
    sources = {}
    for name, component in recipe.components.items():
        data = component_data(recipe, name, component)
        key = repr(data)
        if key not in opened:
            source = _open_train(data, bad) if component.data is None else open_data(data, report=bad)
            if isinstance(source, StreamedSource):
                _check_stream(source, bad)
                source.by_regions = images is not None
            elif images is not None:
                source = RecordsWithRegions(source, images, bad)
            elif bad.skip:
                source = _usable(source, bad)
            opened[key] = source
        sources[name] = opened[key]
    _note(bad, report)
    return sources


def _check_stream(source: StreamedSource, bad: BadRecords) -> None:
    if bad.skip:
        raise ConfigError(
            "bad records are looked for in all records beforehand, which a stream does not have at hand",
            where=source.name,
            hint="leave --skip-bad out; `mmbert data check` looks through the store where it was made",
        )


def _usable(source: Source, bad: BadRecords) -> Source:
    kept = usable_records(source, bad)
    if not kept:
        raise bad.nothing_left()
    return _Part(source, kept)


def _note(bad: BadRecords, report: BadRecords) -> None:
    """Add to ``report`` what is not there yet: a folder may be opened for training and again for evaluation."""
    report.found = list(dict.fromkeys([*report.found, *bad]))


def _open_train(data: str | dict[str, Any], bad: BadRecords) -> Source:
    """The run's own data: its split ``train`` where it has one, else all of it but ``validation`` and ``test``.

    Whoever names several splits (``train+val``) wants all of them. Of joined corpora each is asked by itself.
    """
    whole = open_data(data, report=bad)
    named = parse_data(data) if isinstance(data, str) else data
    if isinstance(whole, StreamedSource):
        known = list(whole.about["splits"])
        chosen = ["train"] if "train" in known else [split for split in known if split not in HELD_OUT]
        if named.get("split") or not chosen:
            return whole
        part = whole.of_splits(chosen)
        part.left_out = HELD_OUT
        return part
    kept = _trained_on(whole, named.get("split"))
    if not kept:
        raise DataError(
            "every record is in a split that is not trained on",
            where=whole.name,
            hint=f"leave some out of {' and '.join(HELD_OUT)}, or put them into train",
        )
    return whole if len(kept) == len(whole) else _Part(whole, kept)


def _trained_on(source: Source, split: object) -> list[int]:
    """Numbers of the records to train on, of a corpus that was opened with this split, if any."""
    if isinstance(source, JoinedSource):
        found: list[int] = []
        start = 0
        for part, named in zip(source.parts, source.splits, strict=True):
            found += [start + number for number in _trained_on(part, named)]
            start += len(part)
        return found
    if "+" in str(split or ""):
        return list(range(len(source)))
    splits = [source[i].split for i in range(len(source))]
    return [i for i, name in enumerate(splits) if (name == "train" if "train" in splits else name not in HELD_OUT)]


class _Part:
    """Some records of a source.

    Args:
        whole: the source.
        kept: numbers of the records.
    """

    def __init__(self, whole: Source, kept: list[int]) -> None:
        self.name = whole.name
        self.whole = whole
        self.kept = kept
        self.languages = tuple(dict.fromkeys(lang for i in kept for lang in whole[i].languages))

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Record:
        return self.whole[self.kept[index]]


def evaluation_records(
    recipe: Recipe, report: BadRecords | None = None, images: RegionInput | None = None
) -> list[Record]:
    """Records that decide which checkpoint is best; empty where the recipe and the run's data name none.

    Raises:
        DataError: a bad record or image, unless ``report`` skips it. (Met in the middle of a run, it would end it.)
    """
    report = report if report is not None else BadRecords()
    own = recipe.evaluation.data is None
    data = run_data(recipe) if own else evaluation_data(recipe)
    if data is None:
        return []
    bad = BadRecords(skip=report.skip)
    source = open_data(data, report=bad)
    if own and isinstance(source, StreamedSource):
        if "validation" not in source.about["splits"]:
            return []
        own, source = False, source.of_splits(["validation"])
    records = [source[i] for i in range(len(source))]
    if own:
        records = [record for record in records if record.split == "validation"]
    if images is not None:
        records = list(RecordsWithRegions(records, images, bad)) if records else []
    else:
        records = [records[i] for i in usable_records(records, bad)]
    _note(bad, report)
    return records


def step_count(recipe: Recipe, components: list[MixturePart], world: int) -> int:
    """Optimiser steps of a run: as said, or as many as the epochs take."""
    if recipe.steps is not None:
        return recipe.steps
    assert recipe.epochs is not None
    longest = max(component.batches_per_epoch for component in components)
    return max(recipe.min_steps, math.ceil(recipe.epochs * longest / (recipe.accumulation * world)))


def build_model(
    recipe: ModelRecipe,
    sources: dict[str, Source],
    seed: int,
    report: InitReport | None = None,
    images: RegionInput | None = None,
) -> MMBert:
    """The model to train: loaded, put together from parts, or fresh from the recipe's configuration.

    Args:
        recipe: of the model.
        sources: for a tokenizer that is trained, and for closed-form starts.
        seed: of whatever is made at random.
        report: filled with what became of the tensors, where the model is put together from parts.
        images: stored regions that the model shall read.

    Raises:
        ConfigError: unknown configuration keys, sizes changed on a loaded model, or regions of another encoder.
        CheckpointError: ``init`` or the backbone weights cannot be used.
    """
    torch.manual_seed(seed)
    if isinstance(recipe.init, str):
        return _reading(_from_checkpoint(recipe.init, recipe), images)
    parts = Parts(recipe.init, recipe.config) if recipe.init is not None else None
    bert = _reading(_new_model(recipe, sources, parts, report, images), images)
    if recipe.whiten_regions:
        whiten_regions(bert, corpus_images(sources))
    if not (recipe.regress_regions or recipe.mean_of_words is not None or recipe.align_texts):
        return bert
    records = list({id(r): r for s in sources.values() for r in map(s.__getitem__, range(len(s)))}.values())
    vectors = regress_regions(bert, records) if recipe.regress_regions else None
    if recipe.mean_of_words is not None:
        start_as_mean_of_words(bert, records, word_std=recipe.mean_of_words, vectors=vectors)
    if recipe.align_texts:
        align_texts(bert, records, vectors=vectors)
    return bert


def _reading(bert: MMBert, images: RegionInput | None) -> MMBert:
    """The model, made to read stored regions and to remember of which encoder."""
    if images is not None:
        bert.use_regions(images)
        bert.config.region_encoder = images.layout.encoder
    return bert


def _new_model(
    recipe: ModelRecipe,
    sources: dict[str, Source],
    parts: Parts | None,
    report: InitReport | None,
    images: RegionInput | None,
) -> MMBert:
    """A fresh model, with its backbone's own weights, then with the parts."""
    _check_keys(recipe.config)
    tokenizer = _tokenizer(recipe, sources, parts)
    options = (parts.sizes if parts is not None else {}) | recipe.config
    options.setdefault("vocab_size", len(tokenizer))
    if images is not None:
        options.setdefault("region_feature_size", images.layout.feature_size)
        options.setdefault("num_region_classes", images.layout.num_classes)
    if options.get("vision"):
        vision = build_vision(options["vision"])
        options["region_feature_size"] = vision.feature_size
    try:
        config = MMBertConfig(**options)
    except Exception as error:  # strict dataclasses raise their own kinds
        raise ConfigError(f"model.config: {str(error).strip().splitlines()[-1].strip()}") from error
    _remember_mask(config, tokenizer)
    model = MMBertForPreTraining(config)
    backbone = _load_backbone(model, recipe.backbone_weights) if recipe.backbone_weights else None
    if parts is not None:
        found = parts.fill(model, tokenizer)
        if backbone is not None:
            found.add_backbone(str(recipe.backbone_weights), *backbone)
        if report is not None:
            vars(report).update(vars(found))
    model, tokenizer = extend_vocabulary(model, tokenizer, recipe.tokenizer)
    return MMBert(model, MMBertProcessor(tokenizer, model.config, model.trunk.vision))


def _remember_mask(config: MMBertConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Which token is ``[MASK]``, for models with heads that are read there."""
    if config.heads and config.mask_token_id is None:
        config.mask_token_id = tokenizer.mask_token_id


def _load_backbone(model: MMBertForPreTraining, description: str) -> tuple[dict[str, str], list[str]] | None:
    """The vision encoder's own checkpoint: its module reads it, if it can, and may say what became of its tensors."""
    encoder = model.trunk.vision
    kind = (model.config.vision or {}).get("kind")
    read = getattr(load("mmbert.vision.encoders", str(kind)), "load_backbone_weights", None) if kind else None
    if encoder is None or read is None:
        raise ConfigError(
            "backbone_weights needs a vision encoder with a backbone, such as one of kind grid",
            hint="set model.config.vision.kind",
        )
    return read(encoder, str(weights_file(description)))


def _from_checkpoint(name: str, recipe: ModelRecipe) -> MMBert:
    wrong = [key for key in recipe.config if key not in CHANGEABLE]
    if wrong:
        raise ConfigError(
            f"model.config.{wrong[0]} cannot change on a model that is loaded (model.init)",
            hint=f"only {', '.join(CHANGEABLE)} may; model.init as {{model: …}} takes what fits into another network",
        )
    found = MMBert.from_pretrained(name, device="cpu")
    if recipe.config:
        fresh = _changed(found.model, recipe.config)
        _remember_mask(fresh.config, found.processor.tokenizer)
        found = MMBert(fresh, MMBertProcessor(found.processor.tokenizer, fresh.config, fresh.trunk.vision))
    model, tokenizer = extend_vocabulary(found.model, found.processor.tokenizer, recipe.tokenizer)
    if model is found.model and tokenizer is found.processor.tokenizer:
        return found
    return MMBert(model, MMBertProcessor(tokenizer, model.config, model.trunk.vision))


def _changed(model: MMBertForPreTraining, changes: dict[str, Any]) -> MMBertForPreTraining:
    """The model with other settings; heads that it had not, or that had other outputs, start as new ones."""
    config, had = model.config, model.config.heads or {}
    heads = changes.get("heads") or {}
    renewed = tuple(f"heads.{name}." for name, options in heads.items() if had.get(name) != options)
    for key, value in changes.items():
        setattr(config, key, had | heads if key == "heads" else value)
    fresh = MMBertForPreTraining(config)
    own = {name: tensor for name, tensor in fresh.state_dict().items() if name.startswith(renewed)}
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(renewed)}
    fresh.load_state_dict(kept | own)
    return fresh


def _check_keys(config: dict[str, Any]) -> None:
    known = [*MMBertConfig.__annotations__, "vision"]
    for key in config:
        if key not in known:
            close = nearest(key, known)
            raise ConfigError(f"unknown key 'model.config.{key}'", hint=f"did you mean {close!r}?" if close else None)


def _tokenizer(recipe: ModelRecipe, sources: dict[str, Source], parts: Parts | None) -> PreTrainedTokenizerBase:
    """The tokenizer named, that of the parts, or one trained on the sources' texts."""
    if recipe.tokenizer.path is not None:
        found = open_tokenizer(recipe.tokenizer.path)
    elif parts is None:
        wanted = recipe.tokenizer
        texts = corpus_texts(sources)
        if wanted.temperature > 1:
            texts = sampled(texts_of_sources(sources.values()), temperature=wanted.temperature)
        found = train_tokenizer(texts, vocab_size=wanted.vocab_size, kind=wanted.kind)
    elif parts.tokenizer is not None:
        found = parts.tokenizer
    else:
        raise ConfigError(
            "model.init: no tokenizer belongs to these word vectors", hint="name one: model.tokenizer.path"
        )
    return lower_cased(found) if recipe.tokenizer.lower_case else found


def corpus_texts(sources: dict[str, Source]) -> Iterator[str]:
    """Every distinct caption and further text of the sources, in order."""
    seen: set[str] = set()
    for source in {id(s): s for s in sources.values()}.values():
        for i in range(len(source)):
            record = source[i]
            for texts in (*record.captions.values(), *record.texts.values()):
                for text in texts:
                    if text not in seen:
                        seen.add(text)
                        yield text


def typical_queries(recipe: Recipe, sources: dict[str, Source]) -> list[str]:
    """``evaluation.query_bank`` distinct captions of the sources (all where there are fewer), drawn by the seed.

    Of a stream they are drawn from the first shard.
    """
    if not recipe.evaluation.query_bank:
        return []
    records = (
        source[i]
        for source in {id(s): s for s in sources.values()}.values()
        for i in range(source.shards[0].rows if isinstance(source, StreamedSource) else len(source))
    )
    found = sorted({caption for record in records for said in record.captions.values() for caption in said})
    order = np.random.default_rng(recipe.seed).permutation(len(found))
    return [found[i] for i in order[: recipe.evaluation.query_bank]]


def corpus_images(sources: dict[str, Source]) -> list[ImageRef]:
    """Every distinct image of the sources, in order."""
    records = (source[i] for source in sources.values() for i in range(len(source)))
    return list({identity(record.image): record.image for record in records if record.image is not None}.values())


def build_components(recipe: Recipe, sources: dict[str, Source], processor: MMBertProcessor) -> list[MixturePart]:
    """The mixture."""
    return [
        _component(name, component, sources[name], processor, recipe.seed)
        for name, component in recipe.components.items()
    ]


def _component(
    name: str, recipe: ComponentRecipe, source: Source, processor: MMBertProcessor, seed: int
) -> MixturePart:
    module = load("mmbert.tasks", recipe.task)
    unknown = [o for o in recipe.objectives if o not in module.OBJECTIVES]
    if unknown:
        close = nearest(unknown[0], module.OBJECTIVES)
        raise ConfigError(
            f"task {recipe.task!r} makes no labels for objective {unknown[0]!r}",
            where=f"components.{name}",
            hint=f"did you mean {close!r}?" if close else f"it has: {', '.join(module.OBJECTIVES)}",
        )
    check_labels(name, module, recipe.objectives)
    task = module.build(task_options(name, recipe), processor, tuple(recipe.objectives))
    if isinstance(source, StreamedSource):
        if recipe.alike > 1:
            raise ConfigError("alike is not for streams", where=f"components.{name}", hint="leave it out")
        return StreamedComponent(name, source, task, recipe.tokens, recipe.records, seed)
    return Component(name, source, task, recipe.tokens, recipe.records, seed, recipe.alike)


def task_options(name: str, recipe: ComponentRecipe) -> Any:
    """The options of a component's task, checked.

    Raises:
        ConfigError: one is unknown or wrong.
    """
    module = load("mmbert.tasks", recipe.task)
    try:
        return module.Options(**recipe.options)
    except ValidationError as error:
        raise validation_error(error, module.Options, f"components.{name}.options") from error


def objective_options(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Options of every ``component/objective``; contrast comes before what reads its embeddings."""
    found = {
        f"{name}/{objective}": options or {}
        for name, component in recipe.components.items()
        for objective, options in component.objectives.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("_hard")))


def grouped_records(recipe: Recipe, sources: dict[str, Source]) -> list[Record]:
    """Records of the components with an objective that keeps something per group."""
    named = [
        name
        for name, component in recipe.components.items()
        if any(hasattr(load("mmbert.objectives", objective), "build_state") for objective in component.objectives)
    ]
    records = {
        id(record): record for name in named for record in map(sources[name].__getitem__, range(len(sources[name])))
    }
    return list(records.values())


def group_numbers(records: Iterable[Record]) -> torch.Tensor:
    """[G] sorted distinct group numbers."""
    return torch.tensor(sorted({group_number(record.group) for record in records}), dtype=torch.long)
