"""What commands that write pictures share. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli.common import note

FontsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--font", help="A TrueType font that PNGs are written in before those of this machine; may be given again."
    ),
]
MOST_MISSING = 40


def note_pictures(written: Sequence[Path], missing: str) -> None:
    """Say on standard error what was written, and which letters no font has."""
    for path in written:
        note(f"picture: {path}")
    if missing:
        more = f" and {len(missing) - MOST_MISSING} more" if len(missing) > MOST_MISSING else ""
        note(f"no font here has: {' '.join(missing[:MOST_MISSING])}{more} (boxes stand for them; --font gives one)")
