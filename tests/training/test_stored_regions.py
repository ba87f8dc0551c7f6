"""Training from region stores: without any image file, the same after an interruption, refusing foreign regions."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopping import interrupt
from stores import CLASSES, FEATURES, make_store, old_image, old_json, regions_of, write_zip

from mmbert import MMBert
from mmbert.compat.features import convert_features
from mmbert.data.mixture import StepDataset
from mmbert.data.records import BadRecords, ImageRef
from mmbert.data.region_input import RecordsWithRegions, RegionInput
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError
from mmbert.evaluation.retrieval import evaluate_retrieval
from mmbert.training.build import build_components, build_model, open_features, open_sources
from mmbert.training.recipe import Recipe
from mmbert.training.run import train

torch.set_num_threads(1)
LEGACY = Path(__file__).parents[2].parent / "shared" / "data" / "legacy"
MakeRecipe = Callable[..., Recipe]
WORDS = [("dog", "Hund"), ("cat", "Katze"), ("tree", "Baum"), ("house", "Haus"), ("ball", "Ball"), ("sea", "Meer")]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotation file in MM-BERT's format with its features, converted to ``store`` beside it; no image exists."""
    folder = tmp_path_factory.mktemp("old")
    rows, members = [], {}
    for number in range(12):
        english, german = WORDS[number % 6]
        name = f"{1000 + number}"
        members[f"{name}.json"] = old_json(old_image(number, count=2 + number % 4))
        caption = f"a {'big ' if number > 5 else ''}{english}"
        rows.append(
            {
                "image": f"pictures.zip@/{name}.jpg",
                "frcnn": f"frcnn.zip@/{name}.json",
                "caption_en": caption,
                "caption_de": f"ein {german}",
            }
        )
    write_zip(folder / "frcnn.zip", members)
    (folder / "train.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    convert_features(folder / "train.json", folder / "store", shard_images=5, top_k=CLASSES)
    return folder


@pytest.fixture
def stored_recipe(old: Path, recipe_of: MakeRecipe) -> MakeRecipe:
    def make(**changes: Any) -> Recipe:
        """Contrast and masked words and regions on the old data."""
        data = str(old / "train.json")
        config = {"vision": None, "region_regression": False, "num_region_classes": CLASSES}
        components = {"main": {"data": data}, "masked": {"data": data, "tokens": 40, "objectives": {"mvrc": {}}}}
        made = {"features": str(old / "store"), "steps": 6, "model": {"config": config}, "components": components}
        recipe = recipe_of(**(made | changes))
        del recipe.components["masked"].objectives["mvfr"]
        return recipe

    return make


def test_old_features_train_and_go_on_after_an_interruption_as_if_nothing_had_been(
    stored_recipe: MakeRecipe, old: Path, tmp_path: Path
) -> None:
    recipe = stored_recipe(save_every=2)
    undisturbed = train(recipe, tmp_path / "undisturbed")
    lines = [json.loads(line) for line in (undisturbed.folder / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["masked/mvrc"]) for line in lines if "masked/mvrc" in line)
    interrupt(recipe, tmp_path / "interrupted", 3)
    resumed = train(recipe, tmp_path / "interrupted")
    first, second = (load_file(r.model / "model.safetensors") for r in (undisturbed, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = MMBert.from_pretrained(undisturbed.model, device="cpu")
    assert model.config.region_encoder == f"legacy:{FEATURES}x{CLASSES}"
    assert (model.config.region_feature_size, model.config.vision) == (FEATURES, None)
    images = RegionInput(old / "store", classes=False)
    model.use_regions(images)
    source = open_data(str(old / "train.json"))
    records = list(RecordsWithRegions(source, images, BadRecords()))
    found = evaluate_retrieval(model, records, mode="rerank", rerank=3)
    assert set(found["text_to_image"]) == {"mean", "en", "de"}
    assert model.match_pairs([r.image for r in records], ["a dog"], np.array([[0, 0], [5, 0]])).shape == (2,)


@pytest.mark.skipif(not LEGACY.is_dir(), reason="../shared/data/legacy is not here")
def test_the_published_fixture_trains_and_is_evaluated(stored_recipe: MakeRecipe, tmp_path: Path) -> None:
    data = str(LEGACY / "multi30k_val_40.json")
    convert_features(data, tmp_path / "store")
    recipe = stored_recipe(features=str(tmp_path / "store"), steps=3)
    recipe.model.config["num_region_classes"] = 1601
    for component in recipe.components.values():
        component.data = data
    recipe.evaluation.data = data
    done = train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["masked/mvrc"]) and np.isfinite(line["masked/mlm"]) for line in lines if "loss" in line)
    assert set(done.metrics["evaluation"]["text_to_image"]) == {"mean", "en", "de"}
    config = MMBert.from_pretrained(done.model, device="cpu").config
    assert (config.region_feature_size, config.region_encoder) == (2048, "legacy:2048x1601")


def test_batches_are_planned_by_the_regions_that_each_image_has(stored_recipe: MakeRecipe, old: Path) -> None:
    recipe = stored_recipe()
    images = open_features(recipe)
    assert images is not None
    sources = open_sources(recipe, images=images)
    bert = build_model(recipe.model, sources, 1, images=images)
    masked = build_components(recipe, sources, bert.processor)[1]
    for index in range(12):
        record = masked.source[index]
        (example,) = masked.task.examples(record, np.random.default_rng(0))
        made = len(example.token_ids) + images.count(record.image) + 1
        assert images.count(record.image) == 3 + index % 4
        assert made <= masked.task.cost(record)
    sizes = [sum(masked.task.cost(masked.source[i]) for i in masked.batch(n)) for n in range(masked.batches_per_epoch)]
    assert len(sizes) > 2 and max(sizes) <= 40


def test_a_batch_is_the_same_on_every_rank_and_in_every_order(stored_recipe: MakeRecipe) -> None:
    recipe = stored_recipe()
    images = open_features(recipe)
    sources = open_sources(recipe, images=images)
    bert = build_model(recipe.model, sources, 1, images=images)
    ranks = [
        StepDataset(
            build_components(recipe, sources, bert.processor),
            batches=4,
            images=pickle.loads(pickle.dumps(images)),
            seed=3,
        )
        for _ in range(2)
    ]
    forwards = [ranks[0][number] for number in range(4)]
    backwards = [ranks[1][number] for number in reversed(range(4))][::-1]
    for here, there in zip(forwards, backwards, strict=True):
        assert here.regions is not None and there.regions is not None
        assert torch.equal(here.regions.features, there.regions.features)
        assert torch.equal(here.regions.classes, there.regions.classes)
        assert torch.equal(here.token_ids, there.token_ids)
    assert not torch.equal(forwards[0].token_ids, forwards[1].token_ids)


def test_regions_of_another_encoder_are_refused(stored_recipe: MakeRecipe, old: Path, tmp_path: Path) -> None:
    recipe = stored_recipe()
    images = open_features(recipe)
    assert images is not None
    bert = build_model(recipe.model, open_sources(recipe, images=images), 1, images=images)
    other = make_store(tmp_path / "other", {"1000": regions_of(0)})
    with pytest.raises(ConfigError, match=r"encoder test, the model's of legacy:6x5"):
        bert.use_regions(RegionInput(other.path))
    convert_features(old / "frcnn.zip", tmp_path / "same")
    bert.use_regions(RegionInput(tmp_path / "same"))
    bert.config.region_feature_size = 7
    with pytest.raises(ConfigError, match="6 numbers per region, the model reads 7"):
        bert.use_regions(images)


def test_several_stores_of_one_encoder_are_used_together(old: Path, tmp_path: Path) -> None:
    more = make_store(tmp_path / "more", {"x": regions_of(7)}, encoder=f"legacy:{FEATURES}x{CLASSES}")
    images = RegionInput([old / "store", more.path])
    refs = [ImageRef(data=b"", key=key) for key in ("1001", "x", "1000.jpg")]
    first_rows, table, pixels = images.table(refs)
    assert pixels is None and first_rows == np.cumsum([0, *(images.count(ref) for ref in refs)]).tolist()
    assert table.features is not None
    np.testing.assert_array_equal(table.features[first_rows[1] : first_rows[2]].numpy(), regions_of(7).features)
    foreign = make_store(tmp_path / "foreign", {"y": regions_of(8)})
    with pytest.raises(DataError, match="encoder test, but"):
        RegionInput([old / "store", foreign.path])


def test_records_without_regions_stop_the_run_or_are_counted(
    stored_recipe: MakeRecipe, old: Path, tmp_path: Path
) -> None:
    rows = (old / "train.json").read_text() + '\n{"image": "new.jpg", "caption_en": "a dog"}'
    (tmp_path / "train.json").write_text(rows)
    recipe = stored_recipe()
    for component in recipe.components.values():
        component.data = str(tmp_path / "train.json")
    images = open_features(recipe)
    with pytest.raises(DataError, match=r"train\.json:13: no regions of 'new'"):
        open_sources(recipe, images=images)
    bad = BadRecords(skip=True)
    sources = open_sources(recipe, bad, images)
    assert len(sources["main"]) == 12 and len(bad) == 1


def test_what_does_not_go_with_stored_regions_is_said(stored_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be augmented"):
        open_features(stored_recipe(augment={}))
    plain = make_store(tmp_path / "plain", {"1000": regions_of(0, classes=0)}, num_classes=0)
    with pytest.raises(ConfigError, match="mvrc needs class distributions"):
        open_features(stored_recipe(features=plain.path))
    recipe = stored_recipe(model={"config": {"vision": None, "num_region_classes": 3}})
    images = open_features(recipe)
    with pytest.raises(ConfigError, match="5 region classes, the model 3"):
        build_model(recipe.model, open_sources(recipe, images=images), 1, images=images)
