"""What `mmbert train --list` shows: the recipes that ship with mm-bert. Reads their files; cheap to import."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from mmbert.cli._tables import print_table
from mmbert.data.yaml_values import read_value
from mmbert.errors import UsageError

OURS = "recipes"


def shipped_recipes(word: str | None = None) -> list[dict[str, Any]]:
    """Every recipe, or those about a word.

    Args:
        word: is in the name, the description or the group.

    Returns:
        ``name``, ``description``, ``published`` (the configuration that it stands for, or None) and ``group``
        (``recipes``, or where that configuration lies: ``MM-BERT/retrieval``), ordered by group.

    Raises:
        UsageError: no recipe is about it.
    """
    from mmbert.training.recipe import recipe_files

    found = []
    for name, path in recipe_files().items():
        content = read_value(path.read_text("utf-8"))
        published = content.get("published")
        group = OURS if published is None else published.rpartition("/")[0]
        found.append({"name": name, "description": content["description"], "published": published, "group": group})
    if word is not None:
        found = [one for one in found if word.lower() in f"{one['name']} {one['description']} {one['group']}".lower()]
        if not found:
            raise UsageError(f"no recipe is about {word!r}", hint="mmbert train --list")
    return sorted(found, key=lambda one: (one["group"] != OURS, one["group"]))


def print_recipes(recipes: Iterable[dict[str, Any]], *, short: bool) -> None:
    """For people: a table for each group.

    Args:
        recipes: ordered by group.
        short: of the published ones, say only how many each group has and which.
    """
    published = []
    for group, members in groupby(recipes, key=lambda one: str(one["group"])):
        rows = [(one["name"], one["description"]) for one in members]
        if short and group != OURS:
            published.append((group, str(len(rows)), ", ".join(name for name, _ in rows)))
        else:
            print_table(group, ("", ""), rows, left=(0, 1))
    if published:
        title = "published settings of VL-BERT and MM-BERT (mmbert train --list WORD says more)"
        print_table(title, ("", "", ""), published, left=(0, 2))
