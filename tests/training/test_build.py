"""From a recipe to the things it names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mmbert.errors import CheckpointError, ConfigError
from mmbert.text.tokenizer import train_tokenizer
from mmbert.training.build import (
    build_model,
    corpus_images,
    corpus_texts,
    objective_options,
    open_sources,
    typical_queries,
)
from mmbert.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


def model_of(recipe: Recipe) -> Any:
    return build_model(recipe.model, open_sources(recipe), recipe.seed)


def test_components_of_one_corpus_share_it(recipe_of: MakeRecipe) -> None:
    sources = open_sources(recipe_of())
    assert sources["main"] is sources["masked"]
    assert len(sources["main"]) == 12


def test_every_text_and_image_of_the_corpus_comes_once(recipe_of: MakeRecipe) -> None:
    sources = open_sources(recipe_of())
    texts = list(corpus_texts(sources))
    assert len(texts) == len(set(texts))
    assert {"red", "dunkel rot", "foncé bleu"} <= set(texts)
    assert len(corpus_images(sources)) == 12


def test_sizes_follow_the_tokenizer_and_the_vision_encoder(recipe_of: MakeRecipe) -> None:
    bert = model_of(recipe_of())
    assert bert.config.vocab_size == len(bert.processor.tokenizer)
    assert bert.config.region_feature_size == bert.model.trunk.vision.feature_size == 64


def test_the_seed_decides_the_weights(recipe_of: MakeRecipe) -> None:
    first, again, other = (model_of(recipe_of(seed=seed)).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["match_head.weight"], other["match_head.weight"])


def test_a_tokenizer_can_be_given(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    train_tokenizer(["rot blau grün"] * 3, vocab_size=40).save_pretrained(tmp_path / "tokenizer")
    bert = model_of(recipe_of(model={"tokenizer": {"path": str(tmp_path / "tokenizer")}}))
    assert (
        bert.processor.tokenizer("rot").tokens()
        == train_tokenizer(["rot blau grün"] * 3, vocab_size=40)("rot").tokens()
    )
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        model_of(recipe_of(model={"tokenizer": {"path": str(tmp_path / "nowhere")}}))


def test_backbone_weights_come_from_a_file_or_a_package(
    recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    state = timm.create_model("test_vit", img_size=64).state_dict()
    package = tmp_path / "some_backbone_weights"
    (package / "files").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('a package of weights is not imported')")
    torch.save(state, package / "files" / "weights.pth")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for place in (str(package / "files" / "weights.pth"), "package:some_backbone_weights"):
        backbone = model_of(recipe_of(model={"backbone_weights": place})).model.trunk.vision.backbone.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in backbone.items())
    torch.save(state, package / "more.pt")
    with pytest.raises(CheckpointError, match="2 weight files"):
        model_of(recipe_of(model={"backbone_weights": "package:some_backbone_weights"}))


@pytest.mark.parametrize(
    ("place", "message"), [("nowhere.pth", "no such file"), ("package:no_such_weights", "is not installed")]
)
def test_missing_backbone_weights_are_named(recipe_of: MakeRecipe, place: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_of(recipe_of(model={"backbone_weights": place}))


def test_backbone_weights_need_a_backbone(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind grid"):
        model_of(recipe_of(model={"config": {"vision": None}, "backbone_weights": str(tmp_path)}))


def test_contrast_is_computed_before_what_reads_its_embeddings(recipe_of: MakeRecipe) -> None:
    content = recipe_of().model_dump()
    content["components"]["main"]["objectives"] = {"itm_hard": {"pairs": 4}, "itc": {"weight": 2.0}}
    order = objective_options(Recipe.model_validate(content))
    assert list(order).index("main/itc") < list(order).index("main/itm_hard")
    assert order["main/itc"] == {"weight": 2.0}


def test_typical_queries_are_captions_drawn_by_the_seed(recipe_of: MakeRecipe) -> None:
    def drawn(count: int, seed: int = 1) -> list[str]:
        recipe = recipe_of(seed=seed, evaluation={"query_bank": count})
        return typical_queries(recipe, open_sources(recipe))

    everything = drawn(1000)
    assert len(everything) == len(set(everything)) > 12
    assert {"red", "dunkel rot"} <= set(everything)
    assert drawn(5) == drawn(5)
    assert len(drawn(5)) == 5
    assert set(drawn(5)) <= set(everything)
    assert drawn(5) != drawn(5, seed=2)
    assert drawn(0) == []
