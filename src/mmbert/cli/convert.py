"""Convert VL-BERT and MM-BERT checkpoints to model folders and back, YAML files to recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli.common import JsonOption, note, output_path, print_json
from mmbert.errors import ConfigError, UsageError
from mmbert.files import whole_file


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .model file of VL-BERT or MM-BERT; with --to vlbert a model folder, with --to recipe a YAML file."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The new model folder (with --to vlbert or recipe: the new file).")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The YAML file that the checkpoint was trained with.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Which network it is, where there is no YAML file: vqa, retrieval, …")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="vocab.txt, its folder, or a hub id. Default: what the YAML names."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", help="Attention heads, without a YAML file. Default: 64 wide each.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="What the outputs of the task's head are (answers, words): a file, one a line."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="'mmbert'; 'vlbert' to write a checkpoint of the originals; 'recipe'.")
    ] = "mmbert",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Convert what fits; list what is missing and what is left over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert VL-BERT and MM-BERT checkpoints to model folders and back, their YAML files to recipes.

    Only tensors are read: a checkpoint that would have to run code is refused.

    Examples:

      mmbert convert vl-bert-base-prec.model --config base_prec.yaml --out vl-bert-base
      mmbert convert vqa.model --task vqa --tokenizer bert-base-uncased --labels answers_vqa.txt --out vqa
      mmbert convert vl-bert-base --to vlbert --out vl-bert-base.model
      mmbert convert base_prec.yaml --to recipe --out base-prec.yaml
    """
    if to not in ("mmbert", "vlbert", "recipe"):
        raise UsageError(f"cannot convert to {to!r}", hint="--to is mmbert, vlbert or recipe")
    given = {"--config": config, "--task": task, "--tokenizer": tokenizer, "--heads": heads, "--labels": labels}
    useless = [name for name, value in given.items() if value is not None]
    useless += ["--allow-partial"] if allow_partial else []
    if to != "mmbert" and useless:
        raise UsageError(f"{useless[0]} does not go with --to {to}", hint="it is about reading a .model file")
    if config is not None and heads is not None:
        raise UsageError("--heads does not go with --config", hint="the YAML file says it")
    if to == "recipe":
        _convert_settings(source, out, as_json)
        return
    from mmbert.compat.convert import convert as to_folder
    from mmbert.compat.convert import convert_back

    if to == "vlbert":
        report = convert_back(source, out)
    else:
        settings = None if heads is None else {"num_attention_heads": heads}
        report = to_folder(
            source,
            out,
            config=config,
            task=task,
            tokenizer=tokenizer,
            allow_partial=allow_partial,
            settings=settings,
            labels=labels,
        )
    if as_json:
        print_json(vars(report))
        return
    for what, names in (("made at random", report.missing), ("left out", report.leftover + report.beside)):
        for name in names:
            note(f"{what}: {name}")
    print(f"{report.out}: {report.task}, {report.used} tensors")


def _convert_settings(source: Path, out: Path, as_json: bool) -> None:
    """Write a YAML file of the originals as a recipe; it is in place only once it has been read back."""
    import yaml

    from mmbert.compat.recipes import recipe_from_yaml
    from mmbert.training.recipe import load_recipe

    if source.is_dir():
        raise UsageError(f"{source} is a folder", hint="a recipe is made from a YAML file of VL-BERT or MM-BERT")
    if output_path(out).exists():
        raise UsageError(f"{out} exists already", hint="give a new file")
    draft = recipe_from_yaml(source)
    head = [f"# Made by mmbert convert from {source.name}.", *(f"# not carried over: {line}" for line in draft.ignored)]
    with whole_file(out) as part:
        body = yaml.safe_dump(draft.content, sort_keys=False, allow_unicode=True)
        part.write_text("\n".join([*head, body]), "utf-8")
        try:
            load_recipe(str(part))
        except ConfigError as error:
            raise ConfigError(f"as a recipe: {error.message}", where=str(source), hint=error.hint) from error
    if as_json:
        print_json({"out": out, "extends": draft.content["extends"], "ignored": draft.ignored})
        return
    for line in draft.ignored:
        note(f"not carried over: {line}")
    print(f"{out}: {draft.content['extends']} with the settings of {source.name}")
