"""Where a recipe's data lie: its own (``data``), those of components and those of the evaluation.

In: a recipe. Out: data as ``open_data`` takes them. ``data.root`` is the one place that says where the corpus lies:
``{root}`` in any other data of the recipe stands for it, data of a component or of the evaluation that name no source
are the run's own with other options, and a store of the corpus (``mmbert data prepare``) may lie there as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmbert.data.sources import check_options, is_store, is_url, parse_data, placed
from mmbert.data.sources.prepared import read_about
from mmbert.data.sources.stream import about_at
from mmbert.errors import ConfigError
from mmbert.plugins import load
from mmbert.training.recipe import ComponentRecipe, Recipe

Data = str | dict[str, Any]

FREE = ("split", "languages", "images", "skip_bad", "check_images", "regions_by")
"""Options that a store of the corpus need not have been made with."""


def run_data(recipe: Recipe) -> Data | None:
    """The run's own data; None where it has none.

    Raises:
        ConfigError: the recipe names a corpus, and not where it lies; or a store of another corpus lies there.
    """
    if not isinstance(recipe.data, dict):
        return recipe.data
    if "source" in recipe.data:
        return _located(recipe.data)
    root = recipe.data.get("root")
    return (
        recipe.data if root is None else parse_data(str(root)) | {k: v for k, v in recipe.data.items() if k != "root"}
    )


def component_data(recipe: Recipe, name: str, component: ComponentRecipe) -> Data:
    """The data of one component.

    Raises:
        ConfigError: neither it nor the run names any, or as for ``run_data``.
    """
    found = run_data(recipe) if component.data is None else _given(recipe, component.data, f"components.{name}.data")
    if found is None:
        raise ConfigError(f"components.{name} needs data", hint="give --data FOLDER, or data=... in the recipe")
    return found


def evaluation_data(recipe: Recipe) -> Data | None:
    """Where a run measures: as the recipe says, else the split ``validation`` of the run's own data, if it has one."""
    if recipe.evaluation.data is not None:
        return _given(recipe, recipe.evaluation.data, "evaluation.data")
    own = run_data(recipe)
    return None if own is None else {**_options(own), "split": "validation"}


def _options(data: Data) -> dict[str, Any]:
    return parse_data(data) if isinstance(data, str) else data


def _given(recipe: Recipe, data: Data, where: str) -> Data:
    """Data of a component or of the evaluation, with the run's root."""
    own = run_data(recipe) if isinstance(data, dict) and "source" not in data else None
    if own is not None and isinstance(data, dict):
        data = _options(own) | data
    if not _names_root(data):
        return data
    root = None if recipe.data is None else _options(recipe.data).get("root")
    if root is None:
        raise ConfigError(
            "starts at the run's data.root, which nothing says",
            where=where,
            hint=f"add data.root=FOLDER to the command, or {where}.root=FOLDER for this one alone",
        )
    return placed(data, str(root))  # type: ignore[no-any-return]


def _names_root(value: Any) -> bool:
    return bool(placed(value, "") != value)


def _located(data: dict[str, Any]) -> dict[str, Any]:
    """A corpus by name: its folder has to be said, and may be a store of it."""
    name, root = str(data["source"]), data.get("root")
    field = load("mmbert.data.sources", name).Options.model_fields.get("root")
    if root is None:
        if _names_root(data) or (field is not None and field.is_required()):
            raise ConfigError(
                f"the recipe is about {name}, and nothing says where that lies",
                where="data",
                hint=f"add data.root=FOLDER (its files, or a store of them: mmbert data prepare {name}), "
                "or take other data: --data FOLDER",
            )
        return data
    return _of_store(name, str(root), data) if is_store(root) and name not in ("prepared", "stream") else data


def _of_store(name: str, root: str, data: dict[str, Any]) -> dict[str, Any]:
    """The same records from a store.

    Raises:
        ConfigError: it is of another corpus, or was prepared otherwise.
    """
    about = about_at(root) if is_url(root) else read_about(Path(root).expanduser())
    options = {key: value for key, value in data.items() if key != "source"}
    asked = check_options(name, load("mmbert.data.sources", name), options).model_dump(mode="json")
    if about.get("corpus") != name:
        raise ConfigError(f"a store of {about.get('corpus')}, where the recipe is about {name}", where=root)
    for key, made in about.get("options", {}).items():
        if key in asked and key not in FREE and asked[key] != made:
            raise ConfigError(
                f"the store was prepared with {key}={made}, the recipe wants {asked[key]}",
                where=root,
                hint=f"mmbert data prepare {name} … {key}={asked[key]}",
            )
    kept = {key: asked[key] for key in ("split", "languages") if asked.get(key) is not None}
    return {"source": "stream" if is_url(root) else "prepared", "root": root, **kept}
