"""Tables on standard output, and lists of what was left out. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmbert.cli.common import counted, human_count, note

MOST_LEFT_OUT = 10
"""Left-out records that are named; ``--json`` has all of them."""


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print a table.

    Args:
        columns: headings; all empty: none are shown.
        rows: cells as plain text; nothing in them is markup.
        left: columns that are aligned to the left, the others hold numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="bold") if title else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for number, column in enumerate(columns):
        text = number in left
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def note_left_out(problems: Sequence[tuple[str, str]]) -> None:
    """Say on standard error how much ``--skip-bad`` left out, and what."""
    if problems:
        note(f"{counted(len(problems), 'bad record')} left out")
    for where, what in problems[:MOST_LEFT_OUT]:
        note(f"left out: {where}: {what}" if where else f"left out: {what}")
    if len(problems) > MOST_LEFT_OUT:
        note(f"left out: {human_count(len(problems) - MOST_LEFT_OUT)} more (all of them with --json)")
