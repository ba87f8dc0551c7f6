"""What `mmbert data list` and `mmbert data prepare` print. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert.cli._tables import print_table
from mmbert.cli.common import human_count, note, show_progress

if TYPE_CHECKING:
    from mmbert.data.download import Downloaded
    from mmbert.data.prepare import Prepared, Progress


def print_catalogue(entries: Sequence[Mapping[str, Any]]) -> None:
    """All corpora, one a line, then the formats of the user's own data."""
    corpora = [entry for entry in entries if entry["card"] is not None]
    rows = [(e["name"], e["summary"], ", ".join(e["card"]["languages"]), e["card"]["licence"]) for e in corpora]
    print_table("Corpora", ("name", "what it is", "languages", "licence"), rows, range(4))
    others = [(e["name"], e["summary"], ", ".join(e["splits"])) for e in entries if e["card"] is None]
    print_table("Ready, and formats of your own data", ("name", "what it is", "splits"), others, range(3))
    note("where to get a corpus, what it holds and what to do: mmbert data list NAME, and docs/corpora.md")
    note("a folder of your own is named by its path; what it must hold: docs/own-data.md")


def print_card(entry: Mapping[str, Any]) -> None:
    """Everything that is known about one corpus."""
    card = entry["card"] or {}
    about = [("what", entry["summary"]), ("title", card.get("title")), ("from", card.get("where"))]
    about += [("licence", card.get("licence")), ("size", card.get("size"))]
    about += [("languages", ", ".join(card.get("languages", ()))), ("splits", ", ".join(entry["splits"]))]
    about += [("files", name) for name in card.get("files", ())]
    about += [("options", ", ".join(entry["options"]))]
    print_table(entry["name"], ("", ""), [(key, str(value)) for key, value in about if value], (0, 1))
    rows = [
        (split, what, human_count(number))
        for split, counts in card.get("counts", {}).items()
        for what, number in counts.items()
    ]
    if rows:
        print_table("Published numbers (checked)", ("split", "what", "number"), rows, (0, 1))
    if card:
        note(f"mmbert data prepare {entry['name']} --from DOWNLOADS --out STORE")


def print_prepared(made: Prepared, out: str) -> None:
    """What a store holds, beside what was published."""
    rows = [
        (name, what, human_count(number), human_count(split.published[what]) if what in split.published else "")
        for name, split in made.splits.items()
        for what, number in split.counts.items()
    ]
    print_table(f"{made.corpus} in {out}", ("split", "what", "found", "published"), rows, (0, 1))
    for difference in made.differences:
        note(f"warning: not the published number: {difference}")
    for missing in made.missing:
        note(f"warning: missing, and left out: {missing}")


def prepare_progress() -> Progress | None:
    """A bar for each split, where a person looks."""
    if not show_progress():
        return None
    from tqdm import tqdm

    bar = tqdm(unit="record", leave=False)

    def update(split: str, done: int, of: int) -> None:
        if bar.desc != f"{split}: ":
            bar.reset(total=of)
            bar.set_description(split)
        bar.update(done - bar.n)

    return update


def download_progress() -> Callable[[Downloaded], None] | None:
    """A bar that counts addresses, where a person looks."""
    if not show_progress():
        return None
    from tqdm import tqdm

    bar = tqdm(unit="image", leave=False)

    def update(result: Downloaded) -> None:
        bar.set_postfix(dead=result.dead, refresh=False)
        bar.update(result.saved + result.already + result.dead - bar.n)

    return update


def note_downloaded(result: Downloaded, out: Path) -> None:
    """What became of the addresses."""
    found = [(result.saved, "saved"), (result.already, "there already"), (result.dead, "dead")]
    note(", ".join(f"{human_count(number)} {what}" for number, what in found))
    for reason, number in result.reasons.most_common(10):
        note(f"dead: {human_count(number)} x {reason}")
    if result.dead:
        note(f"each address and what became of it: {out}/links.jsonl; --again tries the dead ones once more")
