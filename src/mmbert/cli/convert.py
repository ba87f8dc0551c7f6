"""Convert VL-BERT and MM-BERT checkpoints to model folders, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli.common import JsonOption, note, print_json
from mmbert.errors import UsageError


def convert(
    source: Annotated[
        Path, typer.Argument(help="A .model file of VL-BERT or MM-BERT; with --to vlbert a model folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new model folder (with --to vlbert: the new file).")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The YAML file that the checkpoint was trained with.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Which network it is, where there is no YAML file: vqa, retrieval, …")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Folder with vocab.txt, or a hub id. Default: what the YAML names."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", help="Attention heads, without a YAML file. Default: 64 wide each.")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="'mmbert', or 'vlbert' to write a checkpoint of the originals.")
    ] = "mmbert",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Convert what fits; list what is missing and what is left over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert VL-BERT and MM-BERT checkpoints to model folders, and back.

    Only tensors are read: a checkpoint that would have to run code is refused.

    Examples:

      mmbert convert vl-bert-base-prec.model --config base_prec.yaml --out vl-bert-base
      mmbert convert vqa.model --task vqa --tokenizer bert-base-uncased --out vqa
      mmbert convert vl-bert-base --to vlbert --out vl-bert-base.model
    """
    from mmbert.compat.convert import convert as to_folder
    from mmbert.compat.convert import convert_back

    if to == "vlbert":
        report = convert_back(source, out)
    elif to == "mmbert":
        settings = None if heads is None else {"num_attention_heads": heads}
        report = to_folder(
            source,
            out,
            config=config,
            task=task,
            tokenizer=tokenizer,
            allow_partial=allow_partial,
            settings=settings,
        )
    else:
        raise UsageError(f"cannot convert to {to!r}", hint="--to is mmbert or vlbert")
    if as_json:
        print_json(vars(report))
        return
    for what, names in (("made at random", report.missing), ("left out", report.leftover + report.beside)):
        for name in names:
            note(f"{what}: {name}")
    print(f"{report.out}: {report.task}, {report.used} tensors")
