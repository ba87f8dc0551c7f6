"""The model card: what the model is, how it was trained, what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmbert.api.front_door import MMBert
from mmbert.model.modeling import parameter_count
from mmbert.plugins import load
from mmbert.training.recipe import Recipe

MEASURES = "mmbert.evaluation.measures"


def write_card(folder: Path, recipe: Recipe, bert: MMBert, metrics: dict[str, Any]) -> None:
    """Write ``README.md`` into a model folder.

    Args:
        metrics: as in ``metrics.json``: ``evaluation`` (the report of the recipe's measure, or empty) and its ``data``.
    """
    config, report = bert.config, metrics["evaluation"]
    languages = sorted(k for k in report.get("text_to_image", {}) if k not in ("mean", "und"))
    front = ["---", "library_name: mm-bert", "pipeline_tag: feature-extraction", "tags: [mm-bert, vision-language]"]
    if languages:
        front.append(f"language: [{', '.join(repr(code) for code in languages)}]")  # 'no' alone would be false
    if recipe.license:
        front.append(f"license: {recipe.license}")
    lines = [*front, "---", "", f"# {recipe.name}", "", recipe.description, ""]
    lines += [
        f"A single-stream vision-language encoder trained with mm-bert: {parameter_count(bert.model)} M parameters,",
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.vocab_size} word pieces,",
        f"embeddings of {config.embedding_size} numbers." if config.embedding_size else "no embeddings.",
        "",
        "```python",
        "from mmbert import MMBert",
        "",
        'model = MMBert.from_pretrained("PATH OF THIS FOLDER")',
        "```",
        "",
        "## Training",
        "",
        f"{_length(recipe)}, seed {recipe.seed}; the whole recipe is in `recipe.yaml`, versions in `versions.json`.",
        "",
    ]
    if recipe.model.init:
        lines += [f"Started from `{recipe.model.init}`.", ""]
    for name, component in recipe.components.items():
        objectives = ", ".join(component.objectives)
        data = recipe.data if component.data is None else component.data
        lines.append(f"- {name}: task {component.task}, data {_short(data)}, objectives {objectives}")
    if report:
        measure = load(MEASURES, recipe.evaluation.measure)
        how = measure.how(measure.Options(**recipe.evaluation.measure_options))
        lines += [
            "",
            "## Measured",
            "",
            f"{_capital(recipe.evaluation.measure.replace('_', ' '))} on {_short(metrics['data'])} ({how}):",
            "",
        ]
        lines += measure.table(report)
    (folder / "README.md").write_text("\n".join(lines) + "\n", "utf-8")


def _length(recipe: Recipe) -> str:
    return f"{recipe.steps} steps" if recipe.epochs is None else f"{recipe.epochs:g} epochs"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _short(data: Any) -> str:
    if not isinstance(data, dict):
        return f"`{data}`"
    return "`" + " ".join(f"{k}={v}" for k, v in data.items()) + "`"
