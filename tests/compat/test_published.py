"""The published configurations as recipes of ours: all are converted or named as waiting, and those converted run.

Settings come from ``published-settings.json`` beside the repository; data and models are made here, at tiny size.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import (
    WORDS,
    Sizes,
    pretraining_shapes,
    random_state,
    resnet_shapes,
    resnet_state,
    trunk_shapes,
    write_checkpoint,
    write_yaml,
)
from PIL import Image
from published import FILE, NAMES, ROWS, recipe_of, settings_of, written
from starts import small_bert
from transformers import AutoTokenizer

from mmbert.api.processing import MMBertProcessor
from mmbert.cli.main import run
from mmbert.compat.configs import LegacySettings, plan_from_yaml
from mmbert.compat.convert import model_class
from mmbert.compat.recipes import FAMILIES, recipe_from_yaml, starts
from mmbert.errors import ConfigError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import build_vision
from mmbert.plugins import load, names
from mmbert.training.build import open_sources
from mmbert.training.recipe import Recipe, load_recipe, recipe_names
from mmbert.training.run import train

torch.set_num_threads(1)
MT = "MM-BERT/MT/base_prec_16x16G_fp16_"
CHOICES = [name for name in NAMES if name.startswith("VL-BERT/vcr/")]
"""These run in test_published_vcr.py: they read questions with boxes."""
QUESTIONS = [name for name in NAMES if name.startswith("VL-BERT/vqa/")]
"""These run in test_published_vqa.py: they read questions."""
EXPRESSIONS = [name for name in NAMES if name.startswith("VL-BERT/refcoco/")]
"""These run in test_published_refcoco.py."""
LOOKING = ["VL-BERT/pretrain/vis_attention_maps_coco"]
"""Configurations that train nothing: a converted model and a command do what they are for."""
RUNNING = [name for name in NAMES if name not in {*CHOICES, *QUESTIONS, *EXPRESSIONS, *LOOKING}]
SHIPPED = {load_recipe(name).published: name for name in recipe_names() if load_recipe(name).published is not None}
UNNAMED: set[str] = set()
"""Running configurations that no shipped recipe stands for; to be kept empty."""

pytestmark = pytest.mark.skipif(not ROWS, reason=f"no {FILE.name} in a folder shared/spec beside the repository")


# -- all of them are known ---------------------------------------------------------------------------------------------


def test_there_are_66() -> None:
    assert len(NAMES) == 66


def test_no_configuration_waits_for_a_task_that_is_there(tmp_path: Path) -> None:
    """A new task has to be the task of some published configuration: fill in its line in ``FAMILIES``."""
    made = [recipe_of(name, _fresh(tmp_path)) for name in [*RUNNING, *CHOICES, *QUESTIONS, *EXPRESSIONS]]
    used = {component.task for recipe in made for component in recipe.components.values()}
    assert used == set(names("mmbert.tasks"))
    assert all(family.recipe or family.instead for family in FAMILIES.values())


def _fresh(folder: Path) -> Path:
    made = folder / str(len(list(folder.iterdir())))
    made.mkdir()
    return made


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_says_which_network_it_is(name: str, tmp_path: Path) -> None:
    """Also where the task is not built yet: a checkpoint trained with it becomes a model of ours."""
    settings = settings_of(name)
    network = settings["NETWORK"]
    config = plan_from_yaml(written(name, tmp_path), {}).config
    (architecture,) = config.architectures
    data = settings["DATASET"]["DATASET"] if isinstance(settings["DATASET"], dict) else ""
    own = {
        "vcr": "MMBertForMultipleChoice", "vqa": "MMBertForQuestionAnswering",
        "refcoco+": "MMBertForReferringExpressions",
    }  # fmt: skip
    if data in own:
        assert architecture == own[data]
    assert (config.vision is None) is network.get("IMAGE_FEAT_PRECOMPUTED", False)
    if config.vision is not None:
        assert config.vision["layers"] == network["IMAGE_NUM_LAYERS"]
        assert [config.vision["short_side"], config.vision["long_side"]] == settings["SCALES"]
        assert config.vision["dilated"] is network["IMAGE_C5_DILATED"]
        with torch.device("meta"):
            model = model_class(config)(config)
        assert model.trunk.vision.feature_size == config.region_feature_size
        assert (model.trunk.pooler is not None) is ("choice" in model.heads or bool(config.match_outputs))


# -- shipped recipes ---------------------------------------------------------------------------------------------------


def test_every_running_configuration_has_a_recipe_of_its_own() -> None:
    """A new task's configurations: write a file each into ``recipes/published`` (or, for now, name them here)."""
    running = {*RUNNING, *CHOICES, *QUESTIONS, *EXPRESSIONS}
    assert running - SHIPPED.keys() == UNNAMED
    assert SHIPPED.keys() <= running
    assert len(SHIPPED) == len([name for name in recipe_names() if load_recipe(name).published])


@pytest.mark.parametrize("name", [name for name in RUNNING if name in SHIPPED])
def test_a_shipped_recipe_is_what_the_configuration_converts_to(name: str, tmp_path: Path) -> None:
    ours, converted = (
        r.model_dump(exclude={"name", "description"}) for r in (load_recipe(SHIPPED[name]), recipe_of(name, tmp_path))
    )
    assert ours == converted


# -- what a recipe says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNING)
def test_the_recipe_says_what_the_configuration_says(name: str, tmp_path: Path) -> None:
    recipe, settings = recipe_of(name, tmp_path), settings_of(name)
    network, training = settings["NETWORK"], settings["TRAIN"]
    for key in (
        "hidden_size", "visual_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings", "type_vocab_size", "with_pooler", "visual_ln", "hidden_dropout_prob",
    ):  # fmt: skip
        assert recipe.model.config[key] == network["VLBERT"][key], key
    assert bool(recipe.model.config["match_outputs"]) is network["WITH_REL_LOSS"]
    assert bool(recipe.model.config["num_region_classes"]) is network["WITH_MVRC_LOSS"]
    end_to_end = not network["IMAGE_FEAT_PRECOMPUTED"]
    assert (recipe.model.config["vision"] or {}).get("kind") == ("resnet" if end_to_end else None)
    if end_to_end:  # and nothing of the extended recipe's own encoder is left
        with torch.device("meta"):
            assert build_vision(recipe.model.config["vision"]).short_side == settings["SCALES"][0]
    assert recipe.model.backbone_weights == (f"{network['IMAGE_PRETRAINED']}-0000.model" if end_to_end else None)
    init = recipe.model.init
    assert init is not None and not isinstance(init, str)
    assert init.text == network["BERT_MODEL_NAME"]
    given = network.get("PARTIAL_PRETRAIN") or []
    assert init.models == (given if isinstance(given, list) else [given])
    assert init.mode == (network.get("INITIALISATION") or "plain")
    assert recipe.model.tokenizer.lower_case
    batch = training["BATCH_IMAGES"]
    samples = sum(batch) if isinstance(batch, list) else batch
    rate = recipe.effective_optimizer(4).lr  # four devices
    assert rate == pytest.approx(training["LR"] * samples * 4 * training.get("GRAD_ACCUMULATE_STEPS", 1))
    optimizer = recipe.optimizer
    assert (optimizer.warmup_steps, optimizer.clip, optimizer.weight_decay, optimizer.schedule) == (
        training["WARMUP_STEPS"], training["CLIP_GRAD_NORM"], training["WD"], "linear",
    )  # fmt: skip
    assert (recipe.epochs, recipe.accumulation) == (training["END_EPOCH"], training.get("GRAD_ACCUMULATE_STEPS", 1))
    assert (recipe.precision == "fp32") is not training["FP16"]
    objectives = {o: v for c in recipe.components.values() for o, v in c.objectives.items()}
    matching = "ttm_hard" if "translation" in str(settings["DATASET"]) and network["WITH_REL_LOSS"] else "itm_hard"
    words = "lm" if recipe.model.config.get("num_decoder_layers") else "mlm"
    for objective, flag in ((words, "MLM"), ("mvrc", "MVRC"), (matching, "REL")):
        wanted = network[f"WITH_{flag}_LOSS"]
        assert bool(objectives.get(objective, {"weight": 0}).get("weight", 1)) is wanted
        if wanted and objective in ("mlm", "mvrc"):
            assert objectives[objective]["per_sequence"] is network[f"{flag}_LOSS_NORM_IN_BATCH_FIRST"]


PACKED = [name for name in NAMES if "DATASET.1.MIN_SEQ_LEN" in ROWS[name]]


@pytest.mark.parametrize("name", PACKED)
def test_running_text_is_packed_as_the_configuration_says(name: str, tmp_path: Path) -> None:
    said = settings_of(name)["DATASET"][1]
    recipe = recipe_of(name, tmp_path)
    texts = recipe.components["texts"]
    assert isinstance(texts.data, dict)
    assert texts.data["source"] == "text_corpus"
    assert texts.data["root"] == "{root}/" + said["TRAIN_ANNOTATION_FILE"]
    assert texts.data["pack"] == said["MIN_SEQ_LEN"]
    assert texts.data["tokenizer"] == settings_of(name)["NETWORK"]["BERT_MODEL_NAME"]
    assert texts.options == {"max_positions": said["SEQ_LEN"]}
    assert "SEQ_LEN" not in (tmp_path / "recipe.yaml").read_text()


def test_how_each_file_of_running_text_is_packed_is_said(tmp_path: Path) -> None:
    settings = settings_of("MM-BERT/pretrain/base_prec_16x16G_fp16_pretrained_LR6")
    settings["DATASET"][1] |= {"TRAIN_ANNOTATION_FILE": "a.doc+b.doc", "MIN_SEQ_LEN": 40, "SEQ_LEN": 50}
    settings["DATASET"][0]["MIN_SEQ_LEN"] = 30  # of captions, which are not packed
    draft = recipe_from_yaml(write_yaml(tmp_path / "c.yaml", settings))
    components = draft.content["components"]
    assert [components[f"texts-{n}"]["data"]["root"] for n in (1, 2)] == ["{root}/a.doc", "{root}/b.doc"]
    assert [components[f"texts-{n}"]["data"]["pack"] for n in (1, 2)] == [40, 40]
    assert [components[f"texts-{n}"]["options"]["max_positions"] for n in (1, 2)] == [50, 50]
    assert [line for line in draft.ignored if "SEQ_LEN" in line] == ["DATASET.0.MIN_SEQ_LEN = 30"]


def test_packed_text_fills_its_sequences(world: Path, tmp_path: Path) -> None:
    """Sentences of one document are read as one sequence, up to SEQ_LEN tokens."""
    recipe = recipe_of(PACKED[0], tmp_path)
    limits = ["components.texts.data.pack=6", "components.texts.options.max_positions=7"]
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), [*tiny(recipe, world), *limits])
    source = open_sources(recipe)["texts"]
    assert [source[number].captions["und"][0] for number in range(len(source))] == [
        "a red dog the ball in the snow", "two dogs run",
    ]  # fmt: skip
    task = load("mmbert.tasks", "pretraining")
    options = task.Options(**recipe.components["texts"].options)
    processor = MMBertProcessor(AutoTokenizer.from_pretrained(world / "bert"), MMBertConfig(vocab_size=len(WORDS)))
    made = task.build(options, processor, ["mlm"]).examples(source[0], np.random.default_rng(0))
    assert [len(example.token_ids) for example in made] == [7]


LEXICAL = [name for name in NAMES if "/MLT/" in name]


@pytest.mark.parametrize("name", LEXICAL)
def test_lexical_translation_classifies_over_the_list_that_the_network_names(name: str, tmp_path: Path) -> None:
    recipe, network = recipe_of(name, tmp_path), settings_of(name)["NETWORK"]
    component = recipe.components["words"]
    assert (component.task, list(component.objectives)) == ("lexical_translation", ["lexical"])
    assert component.options == {"languages": ["de"], "words": network["VLBERT"]["MLT_vocab"]}
    assert component.records == settings_of(name)["TRAIN"]["BATCH_IMAGES"]
    assert recipe.model.config["ignore_regions"] is name.endswith("no_vision")


def test_there_are_seven_of_lexical_translation() -> None:
    assert len(LEXICAL) == 7


@pytest.mark.parametrize("name", LOOKING)
def test_what_trains_nothing_names_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trains nothing") as caught:
        recipe_from_yaml(written(name, tmp_path))
    assert "mmbert explain" in str(caught.value.hint)


@pytest.mark.parametrize("name", LOOKING)
def test_a_converted_checkpoint_shows_its_attention(
    name: str, tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(name)
    small = Sizes()
    settings["SCALES"] = [32, 48]
    settings["NETWORK"] |= {"IMAGE_NUM_LAYERS": 14, "IMAGE_FINAL_DIM": small.visual}
    settings["NETWORK"]["VLBERT"] |= {
        "hidden_size": small.hidden, "visual_size": small.visual, "num_hidden_layers": small.layers,
        "num_attention_heads": small.heads, "intermediate_size": small.intermediate, "vocab_size": small.vocabulary,
        "max_position_embeddings": small.positions,
    }  # fmt: skip
    config = write_yaml(tmp_path / "vis.yaml", settings)
    state = resnet_state(trunk_shapes(small, pooler=False) | resnet_shapes())
    write_checkpoint(tmp_path / "vis.model", state)
    convert = ["convert", str(tmp_path / "vis.model"), "--config", str(config), "--tokenizer", str(words)]
    assert run([*convert, "--out", str(tmp_path / "model")]) == 0
    Image.new("RGB", (64, 48), (80, 100, 200)).save(tmp_path / "dog.png")
    capsys.readouterr()
    explain = ["explain", str(tmp_path / "dog.png"), "a red dog", "--model", str(tmp_path / "model"), "--json"]
    assert run([*explain, "--box", "0,0,32,40", "--box", "20,10,60,40"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["word"] for row in shown["words"]] == ["a", "red", "dog"]
    assert [len(row) for row in shown["attention"]] == [3, 3, 3]  # the whole image, and two boxes
    assert {tuple(row["box"]) for row in shown["words"]} <= {(0, 0, 0.5, 0.8333), (0.3125, 0.2083, 0.9375, 0.8333)}
    assert run([*explain, "--box", "0,0,32"]) == 2
    assert "is no box" in capsys.readouterr().err


def test_what_is_not_carried_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "MM-BERT/pretrain/base_prec_16x16G_fp16_pretrained_LR6"
    source, out = written(name, tmp_path), tmp_path / "r.yaml"
    assert run(["convert", str(source), "--to", "recipe", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "not carried over: DATASET.0.DATASET_PATH = flickr30k" in printed.err
    assert "not carried over: TRAIN.FLIP_PROB = 0.5" in printed.err
    assert "# not carried over: TRAIN.FLIP_PROB = 0.5\n" in out.read_text()
    assert printed.out == f"{out}: pretraining with the settings of {source.name}\n"
    assert run(["convert", str(source), "--to", "recipe", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("MM-BERT/pretrain/base_prec_16x16G_fp16_pretrained_LR6_taskC_startTaskB", None),
        (f"{MT}MT_LR6", None),
        (f"{MT}MT_LR6_encdec", None),
        ("MM-BERT/retrieval/base_prec_16x16G_fp16_downstream_retrieval_german_LR6_startLR6", "de"),
        ("MM-BERT/retrieval/base_prec_16x16G_fp16_distance_vision_only", "de"),
    ],
)
def test_languages_that_a_recipe_does_not_follow_are_named(name: str, language: str | None, tmp_path: Path) -> None:
    settings = settings_of(name)
    settings["DATASET"]["LANGUAGES_USED"] = "second"
    draft = recipe_from_yaml(write_yaml(tmp_path / "c.yaml", settings))
    named = [line for line in draft.ignored if "LANGUAGES_USED" in line]
    assert named == ([] if language else ["DATASET.LANGUAGES_USED = second"])
    (component,) = draft.content["components"].values()
    assert component["options"].get("languages") == ([language] if language else None)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("TRAIN", "OPTIMIZER", "Adam", "TRAIN.OPTIMIZER 'Adam' is not supported yet"),
        ("TRAIN", "LR_SCHEDULE", "plateau", "TRAIN.LR_SCHEDULE 'plateau' is not supported yet"),
        ("NETWORK", "BERT_FROZEN", True, "NETWORK.BERT_FROZEN True is not supported"),
        ("NETWORK", "INITIALISATION", "other", "model.init.mode"),
        ("TRAIN", "BATCH_IMAGES", [8], "numbers in TRAIN.BATCH_IMAGES: 1, entries of DATASET: 2"),
        ("TRAIN", "BATCH_IMAGES", 8, "numbers in TRAIN.BATCH_IMAGES: 1, entries of DATASET: 2"),
        ("TRAIN", "BATCH_IMAGES", [8, 8, 8], "numbers in TRAIN.BATCH_IMAGES: 3, entries of DATASET: 2"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    section: str, key: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of("MM-BERT/pretrain/base_prec_16x16G_fp16_pretrained_LR6")
    settings[section][key] = value
    source = write_yaml(tmp_path / "c.yaml", settings)
    assert run(["convert", str(source), "--to", "recipe", "--out", str(tmp_path / "r.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("VL-BERT/vqa/base_4x16G_fp32", {"heads": {"answer": {"transform": "token_head", "words": "answers_vqa.txt"}}}),
        ("VL-BERT/refcoco/base_gt_boxes_4x16G", {"heads": {"grounding": {"transform": "region_head"}}}),
        (
            "VL-BERT/vcr/base_q2a_4x16G_fp32",
            {"heads": {"region_class": {"transform": "region_head"}}, "segments": {1: 0}},
        ),
        ("MM-BERT/pretrain/base_prec_16x16G_fp16_pretrained_LR6", {}),
    ],
)
def test_where_heads_start_is_said_in_our_names(name: str, found: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(name)
    config = plan_from_yaml(write_yaml(tmp_path / "c.yaml", settings), {}).config
    assert starts(LegacySettings(settings), config) == found
    settings["NETWORK"]["PARTIAL_PRETRAIN_SEGMB_INIT"] = True
    assert starts(LegacySettings(settings), config) == found | {"segments": {1: 0}}
    settings["NETWORK"]["PARTIAL_PRETRAIN_PREFIX_CHANGES"] = ["vlbert.pooler->final_mlp"]
    with pytest.raises(ConfigError, match=r"vlbert\.pooler->final_mlp is not supported"):
        starts(LegacySettings(settings), config)


# -- one step of each --------------------------------------------------------------------------------------------------

TINY = Sizes(layers=1, features=64, classes=1000)
RESNET = "{kind: resnet, layers: 14, short_side: 32, long_side: 48}"
GRID = "{kind: grid, backbone: test_vit, image_size: 64, classes: true}"
WORDS_OF = {"en": ["dog", "snow", "dog"], "de": ["hund", "schnee", "hund"]}
TEXTS = {"en": ["a red dog", "the ball in the snow", "two dogs run"], "de": ["ein hund", "im schnee", "hund und ball"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions in two languages, text files, a text encoder, and a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    rows = []
    for number, (en, de) in enumerate(zip(TEXTS["en"], TEXTS["de"], strict=True)):
        Image.new("RGB", (64, 48), (80 * number, 100, 200 - 80 * number)).save(folder / "photos" / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "caption_en": en, "caption_de": de})
        rows[-1] |= {f"word_{language}": words[number] for language, words in WORDS_OF.items()}
    (folder / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for language, lines in TEXTS.items():
        (folder / f"{language}.txt").write_text("\n".join(lines), "utf-8")
    (folder / "words.txt").write_text("schnee\nhund", "utf-8")
    small_bert(folder / "bert")
    write_checkpoint(folder / "start.model", random_state(pretraining_shapes(TINY, match=0)))
    write_checkpoint(folder / "pixels.model", random_state(pretraining_shapes(replace(TINY, features=2048), match=0)))
    return folder


def tiny(recipe: Recipe, world: Path) -> list[str]:
    """Overrides that bring a recipe down to one step on the tiny world; nothing else of it changes."""
    assert recipe.model.init is not None and not isinstance(recipe.model.init, str)
    text_alone = list(recipe.components) == ["captions"] and not recipe.model.config["num_region_classes"]
    sizes = {
        "hidden_size": TINY.hidden, "visual_size": TINY.visual, "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads, "intermediate_size": TINY.intermediate, "vocab_size": len(WORDS),
        "max_position_embeddings": TINY.positions, "region_feature_size": TINY.features,
    }  # fmt: skip
    overrides = [f"model.config.{key}={value}" for key, value in sizes.items()]
    overrides += ["steps=1", "epochs=null", "precision=fp32", "log_every=1", f"model.init.text={world / 'bert'}"]
    from_pixels = recipe.model.config["vision"] is not None and not recipe.model.config["num_region_classes"]
    if recipe.model.init.models:
        start = str(world / ("pixels.model" if from_pixels else "start.model"))
        overrides.append(f"model.init.model={[start] * len(recipe.model.init.models)}")
    if recipe.model.config["num_region_classes"]:
        overrides.append(f"model.config.num_region_classes={TINY.classes}")
    for name in recipe.components:
        if name.startswith("texts"):
            place = f"components.{name}.data"
            overrides += [f"{place}.root={world / 'en.txt'}", f"{place}.tokenizer={world / 'bert'}"]
    overrides += [
        f"components.{name}.options.words={world / 'words.txt'}"
        for name, component in recipe.components.items() if "words" in component.options
    ]  # fmt: skip
    if text_alone:
        paths = "{" + ", ".join(f"{language}: {world / f'{language}.txt'}" for language in TEXTS) + "}"
        return [*overrides, f"data={{source: text, paths: {paths}}}"]
    overrides += [f"data={world / 'photos'}", "model.backbone_weights=null"]
    if from_pixels:
        return [*overrides, f"model.config.vision={RESNET}"]
    # Boxes with class distributions come with stored regions; here a grid's cells stand for them, which are hidden by
    # a learned feature.
    return [*overrides, f"model.config.vision={GRID}", "model.config.region_mask_feature=true"]


@pytest.mark.parametrize("name", RUNNING)
def test_a_step_of_each_runs(name: str, world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(name, tmp_path)
    result = train(load_recipe(str(tmp_path / "recipe.yaml"), tiny(recipe, world)), tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    step = next(line for line in logged if "loss" in line)
    assert math.isfinite(step["loss"])
    assert step["loss"] > 0
    assert float(step["grad_norm"]) > 0
    for component, settings in recipe.components.items():
        for objective, options in settings.objectives.items():
            if options.get("weight", 1.0):
                assert f"{component}/{objective}" in step
    started = json.loads((tmp_path / "run" / "initialisation.json").read_text())
    assert started["used"][str(world / "bert")] or recipe.model.init.mode == "plain"  # type: ignore[union-attr]
    assert (result.model / "model.safetensors").is_file()


def test_settings_that_a_recipe_has_in_one_way_only_are_named_where_they_say_another() -> None:
    from mmbert.compat.recipes import _ignored

    given = {
        "TRAIN": {"WARMUP_METHOD": "constant", "WARMUP_FACTOR": 0.5},
        "DATASET": [{"SEQ_LEN": 64, "MIN_SEQ_LEN": 32}],
    }
    assert list(_ignored(given)) == [
        "TRAIN.WARMUP_METHOD = constant", "TRAIN.WARMUP_FACTOR = 0.5", "DATASET.0.MIN_SEQ_LEN = 32",
    ]  # fmt: skip
    assert not list(_ignored({"TRAIN": {"WARMUP_METHOD": "linear", "WARMUP_FACTOR": 0.0}}))
