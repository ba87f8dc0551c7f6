"""``mmbert evaluate grounding``: accuracy of the boxes that a model chooses for expressions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli._records import read_records
from mmbert.cli._tables import note_left_out, print_table
from mmbert.cli.common import (
    DeviceOption,
    FeaturesOption,
    Int8Option,
    JsonOption,
    SkipBadOption,
    human_count,
    load_model,
    note,
    output_path,
    print_json,
    show_progress,
)
from mmbert.errors import UsageError


def grounding(
    data: Annotated[
        str, typer.Option("--data", "-d", help="A store of expressions (or STORE:SPLIT), or with --from a corpus.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A model that grounds: a folder or a hub id.")],
    downloads: Annotated[
        Path | None, typer.Option("--from", help="Folder of the official downloads of the corpus DATA names.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of these splits only, e.g. val,testA,testB.")] = None,
    candidates: Annotated[
        str | None,
        typer.Option("--candidates", help="With --from: objects, detections, or detections+objects."),
    ] = None,
    features: FeaturesOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write every answer as a JSON line.")] = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Find what expressions mean (RefCOCO, RefCOCO+, RefCOCOg), split by split.

    Right is a box that overlaps the true one by half or more. "possible" is the share of expressions for which any
    candidate would be right, "chance" the accuracy of drawing one.

    Examples:

      mmbert evaluate grounding --data stores/refcoco_plus --split val,testA,testB --model runs/grounding/best
      mmbert evaluate grounding --data refcoco_plus --from downloads --split testA --candidates detections -m runs/vl
    """
    from mmbert.data.records import BadRecords, Record
    from mmbert.data.sources import open_data, parse_data
    from mmbert.evaluation.grounding import evaluate_grounding, write_answers

    where = None if out is None else output_path(out)
    named = parse_data(data)
    if downloads is not None and "root" in named:
        raise UsageError(f"{data} is a folder already", hint="--from goes with the name of a corpus: mmbert data list")
    if downloads is not None and split is None and "split" not in named:
        raise UsageError(f"which split of {data}?", hint="such as --split val,testA,testB")
    if candidates is not None and downloads is None:
        raise UsageError("--candidates goes with --from", hint="a store has the candidates that it was prepared with")
    bad = BadRecords(skip=skip_bad)
    records: list[Record] = []
    parts = dict.fromkeys([None] if split is None else split.replace(",", " ").split())
    name = data if split is None or "split" not in named else data.removesuffix(f":{named['split']}")
    for part in parts:
        source = open_data(data, report=bad, root=downloads, split=part, candidates=candidates)
        records += [source[i] for i in range(len(source))]
    bert = load_model(model, device, int8=int8)
    records = read_records(records, [bert], features, bad, pixels=True)
    result = evaluate_grounding(bert, records, progress=show_progress())
    if where is not None:
        write_answers(where, result.answers)
    if as_json:
        left_out = [{"where": place, "reason": reason} for place, reason in bad]
        print_json({"model": model, "data": name, **result.report, "left_out": left_out})
    else:
        rows = [
            [
                name or "all",
                human_count(one["expressions"]),
                human_count(one["images"]),
                f"{one['candidates']:.1f}",
                *(f"{100 * one[key]:.1f}" for key in ("accuracy", "possible", "chance")),
            ]
            for name, one in result.report["splits"].items()
        ]
        columns = ("split", "expressions", "images", "candidates", "accuracy", "possible", "chance")
        print_table(f"Grounding, {name}", columns, rows)
        note_left_out(bad.found)
    if where is not None:
        note(f"written: {where}")
