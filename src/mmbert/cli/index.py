"""`mmbert index`: make a folder of images searchable, or bring its index up to date."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli._tables import note_left_out
from mmbert.cli.common import (
    DeviceOption,
    Int8Option,
    JsonOption,
    ModelOption,
    SkipBadOption,
    counted,
    human_count,
    load_model,
    note,
    print_json,
    show_progress,
)


def index(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A folder of images, or a corpus such as starter:heldout_style.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder of the index, or a URI such as s3://bucket/index.")
    ] = "mmbert-index",
    model: ModelOption = "starter",
    skip_bad: SkipBadOption = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove images that are gone from the folder or its metadata.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="Vector index: flat, sq, rq, pq or hnsw. Default: by the number of images."),
    ] = None,
    keep_regions: Annotated[
        bool, typer.Option("--keep-regions", help="Keep what re-ranking needs of each image: faster, and larger.")
    ] = False,
    ray: Annotated[
        int, typer.Option("--ray", min=0, help="Workers of a Ray cluster that encode the images; 0: none.")
    ] = 0,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Make a folder of images searchable, or bring its index up to date.

    Captions and other columns of metadata.jsonl, .csv or .parquet go into the index, if there are any. Run again, it
    only encodes new and changed images. A run that is interrupted can be started again and goes on where it stopped.

    Examples:

      mmbert index my-photos
      mmbert index my-photos --model runs/first --out photos-index --prune --skip-bad
      mmbert index starter:heldout_style --out emoji-index
      mmbert index /shared/photos --out s3://bucket/index --ray 8
    """
    from mmbert.search.build import build_index

    summary = build_index(
        load_model(model, device, int8=int8),
        folder,
        out,
        progress=show_progress(),
        skip_bad=skip_bad,
        prune=prune,
        model_name=lasting_name(model),
        kind=kind,
        keep_regions=keep_regions,
        ray_workers=ray,
    )
    problems = summary.problems
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in problems]
        counts = {name: value for name, value in asdict(summary).items() if name != "problems"}
        print_json({"index": out, "folder": folder, "model": model, **counts, "left_out": left_out})
        return
    done = [
        f"{human_count(number)} {word}"
        for number, word in (
            (summary.added, "added"),
            (summary.updated, "updated"),
            (summary.unchanged, "unchanged"),
            (summary.removed, "removed"),
            (summary.failed, "left out"),
        )
        if number
    ]
    print(f"{out}: {', '.join(done)}")
    note_left_out(problems)
    if summary.unlisted:
        note(f"{counted(summary.unlisted, 'image')} of the folder not indexed: in no usable record of its metadata")
    if summary.measured:
        note(f"left out of the metadata: {', '.join(summary.measured)} (the index measures it itself)")
    if summary.vanished:
        vanished = counted(summary.vanished, "indexed image")
        note(f"{vanished} gone from the folder or its metadata: --prune removes what is gone")
    where = "" if out == "mmbert-index" else f" --index {out}"
    note(f'next: mmbert search "what you look for"{where}')


def lasting_name(model: str) -> str:
    """A model's name as it can be found again from any folder."""
    return str(Path(model).resolve()) if model != "starter" and Path(model).is_dir() else model
