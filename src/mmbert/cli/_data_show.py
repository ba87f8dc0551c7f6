"""``mmbert data show``: some records of a corpus as a table or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli._tables import note_left_out, print_table
from mmbert.cli.common import JsonOption, SkipBadOption, human_count, note, output_path, print_json
from mmbert.errors import UsageError


def show_data(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder, a store, or a corpus such as starter.")],
    count: Annotated[int, typer.Option("--n", "-n", min=1, max=1000, help="How many records.")] = 12,
    split: Annotated[str | None, typer.Option("--split", help="Of this split only.")] = None,
    downloads: Annotated[
        Path | None, typer.Option("--from", help="Folder of the official downloads of the corpus DATA names.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other records.")] = 1,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page with pictures and boxes there.")] = None,
    regions: Annotated[
        str | None, typer.Option("--regions", help="A region store; the page draws its boxes too.")
    ] = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show records drawn at random: captions in every language, boxes, questions and answers, expressions.

    Examples:

      mmbert data show starter -n 5
      mmbert data show my-photos --split test --html look.html
      mmbert data show refcoco_plus --from downloads --split val --html look.html
    """
    from mmbert import html
    from mmbert.data.records import BadRecords
    from mmbert.data.show import as_dict, data_page, rows_of, sample
    from mmbert.data.sources import open_data, parse_data

    if page is not None:
        output_path(page)
    if downloads is not None and "root" in parse_data(data):
        raise UsageError(f"{data} is a folder already", hint="--from goes with the name of a corpus: mmbert data list")
    if regions is not None and page is None:
        raise UsageError("--regions draws boxes on a page", hint="add --html FILE")
    bad = BadRecords(skip=skip_bad)
    source = open_data(data, report=bad, root=downloads, split=split)
    records = sample(source, count, seed)
    shown = f"{human_count(len(records))} of {human_count(len(source))}"
    if page is not None:
        facts = [("Data", source.name), ("Records", shown), ("Seed", seed)]
        store = None
        if regions is not None:
            from mmbert.vision.store import RegionStore

            store = RegionStore(regions)
            facts.append(("Regions", f"{regions} ({store.layout.encoder})"))
        html.write_page(page, data_page(records, title="What is in the data", facts=facts, regions=store))
    if as_json:
        skipped = [{"where": where, "reason": reason} for where, reason in bad]
        print_json({"data": source.name, "records": [as_dict(r) for r in records], "page": page, "skipped": skipped})
    elif page is None:
        for record in records:
            place = f"{record.id} ({record.split})" if record.split else record.id
            print_table(place, ("", ""), rows_of(record), left=(0, 1))
        note(f"{shown} records of {source.name}; --html FILE makes a page with the pictures")
    else:
        note(f"{shown} records of {source.name} are in {page}")
    note_left_out(list(bad))
