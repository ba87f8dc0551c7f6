"""`mmbert data`: list, prepare, show and check corpora, or check your own folder of images and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli._data_show import show_data
from mmbert.cli._tables import note_left_out, print_table
from mmbert.cli.common import JsonOption, SkipBadOption, human_count, note, print_json, show_progress
from mmbert.errors import DataError

if TYPE_CHECKING:
    from mmbert.data.check import CheckResult, Progress

app = typer.Typer(no_args_is_help=True, add_completion=False)

MOST_FAULTS = 20
"""Rows shown of a list that can be as long as the corpus."""


@app.callback()
def _data() -> None:
    """List corpora, prepare them, show what is in them, and check your own data."""


@app.command("list")
def list_corpora(
    name: Annotated[str | None, typer.Argument(help="One corpus: where to get it, and what it holds.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the corpora that commands and recipes can name, or tell everything about one.

    Examples:

      mmbert data list
      mmbert data list multi30k
    """
    from mmbert.cli._corpora import print_card, print_catalogue
    from mmbert.data import sources
    from mmbert.plugins import load

    if name is not None:
        load(sources.__name__, name)  # a misspelt name is an error that knows the nearest
    entries = [entry for entry in sources.catalogue() if name in (None, entry["name"])]
    if as_json:
        print_json({"corpora": entries})
    elif name is None:
        print_catalogue(entries)
    else:
        print_card(entries[0])


@app.command("prepare")
def prepare_corpus(
    name: Annotated[str, typer.Argument(help="A corpus, see `mmbert data list`.")],
    downloads: Annotated[Path, typer.Option("--from", help="Folder of the official downloads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store to make: a new folder.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the corpus, e.g. split=train.")
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Go on where something is missing or counts differ; say what.")
    ] = False,
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the images into the store instead of pointing at them.")
    ] = False,
    embed_images: Annotated[
        bool, typer.Option("--embed-images", help="Write the images into the shards, for a store that is streamed.")
    ] = False,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a store from a corpus's official downloads; its counts are checked against the published ones.

    Every other command then takes the store as --data STORE or --data STORE:SPLIT. Training also streams a copy of it
    from elsewhere: --data s3://BUCKET/STORE.

    Examples:

      mmbert data prepare multi30k --from multi30k-dataset/data --out stores/multi30k images=flickr30k-images
      mmbert data prepare multi30k --from multi30k-dataset/data --out stores/m30k-de languages=en,de split=train
    """
    from mmbert.cli._corpora import prepare_progress, print_prepared
    from mmbert.data.prepare import prepare
    from mmbert.data.records import BadRecords
    from mmbert.data.yaml_values import read_settings

    bad = BadRecords(skip=skip_bad)
    made = prepare(
        name,
        downloads,
        out,
        read_settings(settings or ()),
        skip_bad=bad,
        allow_incomplete=allow_incomplete,
        copy_images=copy_images,
        embed_images=embed_images,
        progress=prepare_progress(),
    )
    if as_json:
        skipped = [{"where": where, "reason": reason} for where, reason in bad]
        print_json({**made.as_dict(), "store": out, "skipped": skipped})
        return
    print_prepared(made, str(out))
    note_left_out(list(bad))


@app.command("download")
def download_images(
    name: Annotated[str, typer.Argument(help="A corpus that gives addresses, such as conceptual_captions.")],
    downloads: Annotated[Path, typer.Option("--from", help="Folder of the official downloads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the images; a run that was broken off goes on.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the corpus, e.g. split=train.")
    ] = None,
    side: Annotated[int, typer.Option(min=16, help="Larger images are made smaller: pixels of the longer side.")] = 512,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Downloads at a time.")] = 16,
    tries: Annotated[int, typer.Option(min=1, help="For a server that is busy or silent.")] = 3,
    most: Annotated[int | None, typer.Option(min=1, help="Only the first addresses of each split.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also try addresses again that were dead before.")] = False,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Download the images of a corpus that gives addresses only; dead links are counted and noted in OUT/links.jsonl.

    Example:

      mmbert data download conceptual_captions --from downloads --out cc-images split=validation
    """
    from mmbert.cli._corpora import download_progress, note_downloaded
    from mmbert.data.download import Limits, download
    from mmbert.data.prepare import links_of
    from mmbert.data.records import BadRecords
    from mmbert.data.yaml_values import read_settings

    bad = BadRecords(skip=skip_bad)
    links = links_of(name, downloads, read_settings(settings or ()), bad, most=most)
    limits = Limits(workers=workers, tries=tries, side=side)
    result = download(links, out, limits, again=again, progress=download_progress())
    if as_json:
        print_json({**result.as_dict(), "images": out, "skipped": len(bad)})
        return
    note_downloaded(result, out)
    note_left_out(list(bad))


app.command("show")(show_data)


@app.command("check")
def check_data(
    data: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A folder, a store, or a corpus such as starter:validation.")
    ],
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read every record and open every image; say what is there and what is broken.

    Exit code 2 when a record or image is broken (not with --skip-bad) or one image is in two splits.

    Examples:

      mmbert data check my-photos
      mmbert data check my-photos --skip-bad --json
    """
    from mmbert.data.check import check

    result = check(data, progress=_progress())
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)
    if result.broken:
        plural = "s" if len(result.broken) != 1 else ""
        found = f"{human_count(len(result.broken))} broken record{plural} or image{plural}"
        if not skip_bad:
            hint = "mend or remove them; --skip-bad leaves them out"
            raise DataError(found, where=result.broken[0].where, hint=hint)
        note(f"{found}: left out by commands with --skip-bad")
    if result.duplicate_images:
        first = result.duplicate_images[0]
        raise DataError(
            f"the same image is in more than one split ({', '.join(first.splits)})",
            where=first.what[0],
            hint="keep each image in one split, or results on the others mean little",
        )


def _progress() -> Progress | None:
    if not show_progress():
        return None
    from tqdm import tqdm

    bar = tqdm(unit="image", leave=False)

    def update(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return update


def _print(result: CheckResult) -> None:
    counts = [("records", human_count(result.records)), ("images", human_count(result.images))]
    if result.sizes:
        sizes = result.sizes
        shown = [f"{width}x{height}" for width, height in (sizes.smallest, sizes.median, sizes.largest)]
        counts.append(("image size", f"{shown[0]} to {shown[2]}, median {shown[1]}"))
    _table(result.name, ("", ""), counts)
    _table(
        "Languages",
        ("language", "records", "captions", "other texts"),
        [
            (language, human_count(c.records), human_count(c.captions), human_count(c.texts))
            for language, c in sorted(result.languages.items())
        ],
    )
    _table("Splits", ("split", "records"), [(name, human_count(n)) for name, n in result.splits.items()])
    _table("Broken", ("where", "why"), [(b.where, b.reason) for b in result.broken], MOST_FAULTS)
    _table(
        "One image in several splits",
        ("images", "splits"),
        [(", ".join(r.what), ", ".join(r.splits)) for r in result.duplicate_images],
        MOST_FAULTS,
    )
    _table(
        "Captions in several splits",
        ("caption", "splits"),
        [(r.what[0], ", ".join(r.splits)) for r in result.repeated_captions],
        MOST_FAULTS,
    )
    for warning in result.warnings:
        note(f"warning: {warning}")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], most: int | None = None) -> None:
    """Print the first ``most`` rows, numbers aligned to the right; nothing where there are none."""
    rows = list(rows)
    if not rows:
        return
    left = [i for i in range(len(columns)) if not (i and _numeric(row[i] for row in rows))]
    print_table(title, columns, rows[:most], left)
    if most is not None and len(rows) > most:
        print(f"  … and {human_count(len(rows) - most)} more (all of them with --json)\n")


def _numeric(cells: Iterable[str]) -> bool:
    return all(cell.replace(",", "").isdigit() for cell in cells)
