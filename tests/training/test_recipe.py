"""Recipes: every key is checked, recipes build on each other, and errors say what to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmbert.errors import ConfigError
from mmbert.training import recipe as recipes
from mmbert.training.recipe import RECIPES, Recipe, check_recipe, load_recipe, recipe_files, recipe_names

SMALLEST: dict[str, Any] = {
    "name": "smallest",
    "steps": 10,
    "components": {"main": {"data": "photos", "task": "retrieval", "objectives": {"itc": {"weight": 2.0}}}},
}


def written(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return written(tmp_path / "smallest.yaml", SMALLEST)


def test_a_file_is_read_and_the_rest_has_defaults(file: str) -> None:
    recipe = load_recipe(file)
    assert recipe.name == "smallest"
    assert recipe.components["main"].objectives == {"itc": {"weight": 2.0}}
    assert recipe.optimizer.lr == 5e-4
    assert recipe.precision == "fp32"
    assert recipe.model.init is None


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_described(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert len(recipe.description) < 120
    assert load_recipe(str(recipe_files()[name])) == recipe


PARTS = sorted(RECIPES.rglob("*.yaml"))


def test_names_of_recipes_are_theirs_alone() -> None:
    assert len({path.stem for path in PARTS}) == len(PARTS)
    assert recipe_names()[0] in {path.stem for path in RECIPES.glob("*.yaml")}


def repeated(content: dict[str, Any], base: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """What is said as ``base`` says it; a section of another kind or source has to say everything."""
    for key, value in content.items():
        old = base.get(key)
        if isinstance(value, dict) and value and isinstance(old, dict):
            if all(value.get(what, old.get(what)) == old.get(what) for what in ("kind", "source")):
                yield from repeated(value, old, (*path, key))
        elif key in base and old == value:
            yield (*path, key)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_no_shipped_recipe_says_again_what_it_extends(path: Path) -> None:
    content = yaml.safe_load(path.read_text("utf-8"))
    given = content.pop("extends", [])
    parents: dict[str, Any] = {}
    for parent in [given] if isinstance(given, str) else given:
        parents = recipes._merge(parents, recipes._read(parent, (str(path),)))
    assert list(repeated(content, parents)) == []


def test_a_resolved_recipe_reads_back_as_itself(file: str) -> None:
    recipe = load_recipe(file, ["optimizer.vision_lr=1e-5", "augment={rotate: 3}"])
    content = yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert check_recipe(content, where="x") == recipe


def test_norwegian_is_a_language_in_recipes_and_in_what_overrides_them(tmp_path: Path) -> None:
    """And true and false are written as such; YAML 1.1 also takes no, off, yes and on for them."""
    written = """
name: x
steps: 1
tf32: true
components:
  main:
    task: retrieval
    objectives: {itc: {}}
    options: {languages: [no, de]}
    data: {source: text, paths: {no: n.txt}}
"""
    (tmp_path / "r.yaml").write_text(written, "utf-8")
    recipe = load_recipe(str(tmp_path / "r.yaml"), ["components.main.options.only=[no]", "deterministic=true"])
    main = recipe.components["main"]
    assert main.options == {"languages": ["no", "de"], "only": ["no"]}
    assert main.data == {"source": "text", "paths": {"no": "n.txt"}}
    assert (recipe.tf32, recipe.deterministic) == (True, True)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), "utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


UNKNOWN = [
    ({"stepz": 3}, "stepz", "steps"),
    ({"optimizer": {"learning": 1, "lr": 1e-3, "warmpu": 0.1}}, "optimizer.learning", None),
    ({"optimizer": {"warmpu": 0.1}}, "optimizer.warmpu", "warmup"),
    ({"model": {"confg": {}}}, "model.confg", "config"),
    ({"model": {"tokenizer": {"vocabsize": 500}}}, "model.tokenizer.vocabsize", "vocab_size"),
    ({"components": {"main": {"taks": "retrieval"}}}, "components.main.taks", "task"),
    ({"evaluation": {"evry": 3}}, "evaluation.evry", "every"),
]


@pytest.mark.parametrize(("change", "key", "close"), UNKNOWN, ids=[u[1] for u in UNKNOWN])
def test_unknown_keys_at_every_level_name_the_nearest(
    tmp_path: Path, change: dict[str, Any], key: str, close: str | None
) -> None:
    content = SMALLEST | change
    if "components" in change:
        content = SMALLEST | {"components": {"main": SMALLEST["components"]["main"] | change["components"]["main"]}}
    path = written(tmp_path / "r.yaml", content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert f"unknown key {key!r}" in str(caught.value)
    assert path in str(caught.value)
    assert (f"did you mean {close!r}" if close else "known: ") in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "steps: "),
        ("steps=many", "steps: "),
        ("optimizer.lr=-1", "optimizer.lr: "),
        ("optimizer.schedule=cosin", "optimizer.schedule: "),
        ("components={}", "components: "),
        ("epochs=3", "(epochs=null steps=10, or steps=null epochs=3)"),
        ("steps=null", "either steps or epochs"),
        ("components.main.objectives=[itc]", "components.main.objectives: "),
    ],
)
def test_values_that_cannot_be_are_named(file: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, [override])
    assert message in str(caught.value)


def test_a_recipe_extends_another_section_by_section(tmp_path: Path, file: str) -> None:
    child = {
        "extends": file, "name": "child", "optimizer": {"lr": 1e-3},
        "components": {"main": {"tokens": 99}, "more": SMALLEST["components"]["main"]},
    }  # fmt: skip
    recipe = load_recipe(written(tmp_path / "child.yaml", child))
    assert recipe.name == "child"
    assert recipe.steps == 10
    assert recipe.components["main"].tokens == 99
    assert recipe.components["main"].task == "retrieval"
    assert set(recipe.components) == {"main", "more"}
    grandchild = load_recipe(written(tmp_path / "g.yaml", {"extends": str(tmp_path / "child.yaml"), "steps": 3}))
    assert (grandchild.steps, grandchild.optimizer.lr) == (3, 1e-3)


def test_options_of_another_kind_are_not_inherited(tmp_path: Path) -> None:
    """A vision encoder of another kind knows nothing of the options of the old one; of the same kind it keeps them."""
    base = SMALLEST | {"model": {"config": {"vision": {"kind": "grid", "backbone": "b", "image_size": 64}}}}
    parent = written(tmp_path / "parent.yaml", base)

    def vision(options: dict[str, Any]) -> Any:
        child = {"extends": parent, "name": "child", "model": {"config": {"vision": options}}}
        return load_recipe(written(tmp_path / "child.yaml", child)).model.config["vision"]

    assert vision({"kind": "resnet", "layers": 50}) == {"kind": "resnet", "layers": 50}
    assert vision({"kind": "grid", "image_size": 96}) == {"kind": "grid", "backbone": "b", "image_size": 96}
    assert vision({"image_size": 96}) == {"kind": "grid", "backbone": "b", "image_size": 96}


def test_a_shipped_recipe_can_be_extended_by_name(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path / "mine.yaml", {"extends": "retrieval", "name": "mine", "min_steps": 7}))
    assert recipe.model_dump() == load_recipe("retrieval").model_dump() | {"name": "mine", "min_steps": 7}


def test_a_recipe_beside_the_file_can_be_extended_from_anywhere(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "child.yaml", {"extends": "smallest.yaml", "steps": 4})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(path).steps == 4


def test_recipes_that_extend_each_other_are_an_error(tmp_path: Path) -> None:
    written(tmp_path / "a.yaml", {"extends": str(tmp_path / "b.yaml")})
    written(tmp_path / "b.yaml", {"extends": str(tmp_path / "a.yaml")})
    with pytest.raises(ConfigError, match=r"extends itself: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_of_several_parents_the_later_win(tmp_path: Path) -> None:
    for name, steps in (("a", 3), ("b", 4)):
        options = {"texts_per_record": steps, name: steps}
        main = {"data": "x", "task": "retrieval", "options": options, "objectives": {"itc": {}}}
        content = {"name": name, "published": name, "steps": steps, "components": {"main": main}}
        written(tmp_path / f"{name}.yaml", content)
    recipe = load_recipe(written(tmp_path / "child.yaml", {"extends": ["a", "b"], "name": "child"}))
    assert recipe.steps == 4
    assert recipe.components["main"].options == {"texts_per_record": 4, "a": 3, "b": 4}
    assert recipe.published is None
    assert load_recipe(str(tmp_path / "a.yaml")).published == "a"
    assert "published" not in load_recipe(str(tmp_path / "a.yaml")).model_dump()


def test_a_corpus_knows_nothing_of_the_options_of_another(tmp_path: Path) -> None:
    parent = written(tmp_path / "parent.yaml", SMALLEST | {"data": {"source": "multi30k", "task": 2}})

    def data(options: dict[str, Any]) -> Any:
        return load_recipe(written(tmp_path / "child.yaml", {"extends": parent, "data": options})).data

    assert data({"source": "wmt14"}) == {"source": "wmt14"}
    assert data({"root": "x"}) == {"source": "multi30k", "task": 2, "root": "x"}


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'retrievl'.*did you mean 'retrieval'"):
        load_recipe(written(tmp_path / "a.yaml", {"extends": "retrievl"}))


def test_overrides_are_yaml_at_any_depth(file: str) -> None:
    recipe = load_recipe(
        file,
        [
            "steps=7", "optimizer.ema=0.9", "components.main.options.languages=[de, fr]", "augment={}",
            "model.config.vision.image_size=96", "components.main.objectives.itc.weight=3", "description=a = b",
        ],
    )  # fmt: skip
    assert recipe.steps == 7
    assert recipe.optimizer.ema == 0.9
    assert recipe.components["main"].options == {"languages": ["de", "fr"]}
    assert recipe.components["main"].objectives == {"itc": {"weight": 3}}
    assert recipe.model.config == {"vision": {"image_size": 96}}
    assert recipe.augment == {}
    assert recipe.description == "a = b"


@pytest.mark.parametrize("pair", [["data=photos", "data.root=more"], ["model.init=starter", "model.init.mode=plain"]])
def test_a_part_does_not_undo_the_whole_that_is_given_beside_it(file: str, pair: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"would take the place of .*=(photos|starter).*give one of the two"):
        load_recipe(file, pair)
    load_recipe(file, ["optimizer.lora=null", "optimizer.lora.rank=2"])
    assert load_recipe(file, ["data={source: folder, root: a}", "data.root=b"]).data == {
        "source": "folder",
        "root": "b",
    }


@pytest.mark.parametrize("override", ["steps", "=3", "", "optimizer.lr"])
def test_an_override_without_a_value_is_an_error(file: str, override: str) -> None:
    with pytest.raises(ConfigError, match="not NAME=VALUE"):
        load_recipe(file, [override])


def test_an_override_that_is_not_yaml_is_an_error(file: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.betas=\[1"):
        load_recipe(file, ["optimizer.betas=[1"])


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path / "broken.yaml", "name: x\nsteps: 3\ncomponents: {main: [}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert f"{path}:3" in str(caught.value)
    assert "YAML" in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just words"])
def test_a_file_without_keys_is_no_recipe(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        load_recipe(written(tmp_path / "x.yaml", content))


def test_an_unknown_name_lists_or_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean 'starter'"):
        load_recipe("startr")
    with pytest.raises(ConfigError, match=r"shipped: .*starter"):
        load_recipe("zzzzzz")


def test_sections_are_typed() -> None:
    assert Recipe.model_validate(SMALLEST | {"optimizer": {"lr": "1e-3"}}).optimizer.lr == 1e-3


def test_a_rate_per_sample_grows_with_the_samples_of_a_step() -> None:
    component = SMALLEST["components"]["main"]
    content = SMALLEST | {
        "accumulation": 3,
        "components": {"main": component | {"records": 8}, "more": component | {"records": 2}},
        "optimizer": {"lr_per_sample": 1e-6},
    }
    recipe = check_recipe(content, where="x")
    assert recipe.effective_optimizer(4).lr == pytest.approx(1e-6 * (8 + 2) * 3 * 4)
    assert recipe.effective_optimizer(1).vision_lr is None
    plain = check_recipe(SMALLEST | {"optimizer": {"lr": 2e-4}}, where="x")
    assert plain.effective_optimizer(4).lr == 2e-4
    with pytest.raises(ConfigError, match=r"lr_per_sample needs components\.more\.records"):
        check_recipe(content | {"components": content["components"] | {"more": component}}, where="x")
