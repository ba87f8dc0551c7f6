"""Describe images in words with a model that was trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli.common import DeviceOption, Int8Option, load_model, show_progress
from mmbert.cli.translate import BeamOption, JsonLinesOption, NBestOption, PenaltyOption, ToOption, WriterOption


def caption(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    model: WriterOption,
    to: ToOption = None,
    beam: BeamOption = None,
    nbest: NBestOption = 1,
    length_penalty: PenaltyOption = 1.0,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Describe images.

    One line per image, its name and the caption (with --nbest N, N lines, best first).

    Examples:

      mmbert caption photo.jpg --model runs/captions/best --to en
      mmbert caption photos/ --model runs/captions/best --to de --beam 5 --json
    """
    from mmbert.cli.embed import find_images
    from mmbert.cli.translate import note_language, print_written
    from mmbert.compat.writing import writer_of

    paths = find_images(images)
    writer = writer_of(load_model(model, device, int8=int8))
    note_language(writer, to)
    found = writer.write(
        None, paths, to=to, beam=beam, nbest=nbest, length_penalty=length_penalty, progress=show_progress()
    )
    if as_json:
        print_written([{"image": str(path)} for path in paths], found, as_json)
        return
    for path, written in zip(paths, found, strict=True):
        for each in written:
            print(f"{path}\t{each.text}")
