"""Translate lines of text with a model that was trained to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.cli.common import DeviceOption, Int8Option, load_model, note, print_json, show_progress

if TYPE_CHECKING:
    from mmbert.api.writer import Writer, Written

WriterOption = Annotated[str, typer.Option("--model", "-m", help="A model that writes: a folder or a hub id.")]
ToOption = Annotated[
    str | None, typer.Option("--to", help="Language to write, e.g. de. Default: the only one that the model writes.")
]
BeamOption = Annotated[
    int | None,
    typer.Option(
        "--beam", min=1, help="Hypotheses kept at each step; 1 is greedy. Default: 4, or 1 if the model has no search."
    ),
]
NBestOption = Annotated[int, typer.Option("--nbest", min=1, help="Texts per input, best first (at most --beam).")]
PenaltyOption = Annotated[
    float, typer.Option("--length-penalty", help="Of a beam, -10 to 10. Greater: longer texts; 0: the likeliest.")
]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="One JSON object per input, with scores.")]


def translate(
    model: WriterOption,
    text: Annotated[
        str, typer.Argument(help="A file with one text per line; - is standard input.", show_default=True)
    ] = "-",
    to: ToOption = None,
    beam: BeamOption = None,
    nbest: NBestOption = 1,
    length_penalty: PenaltyOption = 1.0,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Translate lines of text.

    One line out for each line in (with --nbest N, N lines, best first). The source language need not be said.

    Examples:

      echo "A dog runs through the snow." | mmbert translate --model runs/translation/best --to de
      mmbert translate captions.en --model runs/translation/best --to de --beam 5 --nbest 3 --json
    """
    from mmbert.cli.embed import read_lines
    from mmbert.compat.writing import writer_of

    lines = read_lines(text, "translation")
    writer = writer_of(load_model(model, device, int8=int8))
    note_language(writer, to)
    found = writer.write(lines, to=to, beam=beam, nbest=nbest, length_penalty=length_penalty, progress=show_progress())
    print_written([{"source": line} for line in lines], found, as_json)


def note_language(writer: Writer, to: str | None) -> None:
    """Tell that a language was said to a model that does not know of any."""
    if to is not None and not writer.languages:
        note(f"this model writes the one language that it has learned; whether that is {to} it does not say")


def print_written(inputs: Sequence[dict[str, Any]], found: Sequence[Sequence[Written]], as_json: bool) -> None:
    """One line per text, or one JSON object per input with its ``texts`` and scores."""
    for given, written in zip(inputs, found, strict=True):
        if as_json:
            print_json(given | {"texts": [{"text": w.text, "score": w.score} for w in written]})
        else:
            for each in written:
                print(each.text)
