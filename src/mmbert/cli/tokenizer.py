"""`mmbert tokenizer`: train a tokenizer on corpora or text files, and see how it fits each language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbert.cli._tables import print_table
from mmbert.cli.common import JsonOption, human_count, output_path, print_json, silence_libraries
from mmbert.errors import UsageError

if TYPE_CHECKING:
    from mmbert.text.coverage import Coverage

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _tokenizer() -> None:
    """Train a tokenizer on corpora or text files, and see how it fits each language."""


@app.command("train")
def train(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[[LANG=]PATH]...", help="Text files, one text a line, or folders of them."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", show_default=False)] = Path(
        "tokenizer"
    ),
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Take the texts (and the settings) of a recipe's corpora.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="A folder with captions, or a corpus such as starter:train."),
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="unigram, bpe or wordpiece. Default: unigram.")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", min=10, help="Entries. Default: 16000.")] = None,
    special: Annotated[
        list[str] | None, typer.Option("--special", help="A token that is never cut, e.g. [2de] or [STOP].")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=1.0, help="Above 1: small languages count for more. Default: 1."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Train on at most so many texts.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer, and say for each language how well it fits.

    The folder loads with transformers, and a recipe uses it by model.tokenizer.path=FOLDER. The language of a text file
    is said before it (de=FILE), or by its name (train.de, de.txt).

    unknown: pieces that are [UNK]. covered: characters in known pieces. vocabulary: entries that the language uses.

    Examples:

      mmbert tokenizer train train.en train.de --vocab-size 8000 --special [2en] --special [2de] --out tok
      mmbert tokenizer train --data starter:train --temperature 3 --out tok
      mmbert tokenizer train --recipe mm-bert-mt-texts --set data.root=multi30k --kind wordpiece --out tok
    """
    from mmbert.training.tokenizers import gather, train_and_write

    silence_libraries()
    if changes and recipe is None:
        raise UsageError("--set changes a recipe", hint="add --recipe NAME")
    if not (texts or recipe or data):
        raise UsageError("no texts to train on", hint="give text files, --data or --recipe")
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give a new folder")
    target = output_path(out)
    found, settings = gather(files=texts or [], data=data or [], recipe=recipe, changes=changes or [])
    given = {"kind": kind, "vocab_size": vocab_size, "add_special": special, "temperature": temperature}
    chosen = settings.model_copy(update={key: value for key, value in given.items() if value is not None})
    tokenizer, rows = train_and_write(found, chosen, target, limit=limit, seed=seed)
    facts = {"out": target, "kind": chosen.kind, "entries": len(tokenizer), "temperature": chosen.temperature}
    if as_json:
        print_json(facts | {"languages": [asdict(row) for row in rows]})
    else:
        _print(f"{target}: {chosen.kind}, {human_count(len(tokenizer))} entries", rows)


def _print(title: str, rows: Sequence[Coverage]) -> None:
    columns = ("language", "texts", "unknown", "covered", "pieces/word", "characters/piece", "vocabulary")
    cells = [
        [
            row.language,
            human_count(row.texts),
            f"{100 * row.unknown_rate:.2f} %",
            f"{100 * row.characters_covered:.2f} %",
            f"{row.pieces_per_word:.2f}",
            f"{row.characters_per_piece:.2f}",
            f"{100 * row.vocabulary_share:.1f} %",
        ]
        for row in rows
    ]
    print_table(title, columns, cells)
