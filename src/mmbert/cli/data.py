"""`mmbert data`: look at a corpus or check your own folder of images and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli._tables import print_table
from mmbert.cli.common import JsonOption, SkipBadOption, human_count, note, print_json, show_progress
from mmbert.errors import DataError

if TYPE_CHECKING:
    from mmbert.data.check import CheckResult, Progress

app = typer.Typer(no_args_is_help=True, add_completion=False)

MOST_FAULTS = 20
"""Rows shown of a list that can be as long as the corpus."""


@app.callback()
def _data() -> None:
    """Look at corpora and check your own data."""


@app.command("list")
def list_corpora(as_json: JsonOption = False) -> None:
    """List the corpora that commands and recipes can name.

    Example:

      mmbert data list
    """
    from mmbert.data.sources import catalogue

    entries = catalogue()
    if as_json:
        print_json({"corpora": entries})
        return
    rows = [(str(e["name"]), str(e["summary"]), ", ".join(e["splits"])) for e in entries]
    _table("Corpora", ("name", "what it is", "splits"), rows)
    note("a folder of your own is named by its path; what it must hold: docs/own-data.md")


@app.command("check")
def check_data(
    data: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder, or a corpus such as starter:validation.")],
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
