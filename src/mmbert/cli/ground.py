"""Find the part of an image that an expression means, and draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmbert.cli._tables import print_table
from mmbert.cli.common import DeviceOption, Int8Option, JsonOption, load_model, note, output_path, print_json


def ground(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    expression: Annotated[str, typer.Argument(metavar="EXPRESSION", help='What to find, e.g. "the man in red".')],
    model: Annotated[str, typer.Option("--model", "-m", help="A model that grounds: a folder or a hub id.")],
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            help="JSON: a list of [x1, y1, x2, y2] in pixels, or of {box, name}. "
            "Default: windows over the image, or the model's own regions.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the image with the box as a PNG.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many candidates are shown, best first.")] = 5,
    font: Annotated[
        Path | None, typer.Option("--font", help="TrueType font for the picture, for scripts beyond Latin.")
    ] = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Find the part of an image that an expression means.

    Each candidate box gets a probability that it is meant; the best ones are printed and drawn.

    Examples:

      mmbert ground street.jpg "the man in red" --model runs/grounding/best --out found.png
      mmbert ground street.jpg "the man in red" -m runs/grounding/best --boxes people.json --json
    """
    from mmbert.data.box_files import read_boxes
    from mmbert.explain.grounding import grounding_picture
    from mmbert.explain.page import save_picture
    from mmbert.vision.images import load_image

    picture = None if out is None else output_path(out)
    opened = load_image(image)
    given = None if boxes is None else read_boxes(boxes, opened.size)
    found = load_model(model, device, int8=int8).ground(
        opened, expression, None if given is None else [b.box for b in given]
    )
    names = None if given is None else [b.name for b in given]
    if picture is not None:
        drawn = grounding_picture(opened, found, expression, top=min(top, 3), names=names, font=font)
        save_picture(picture, drawn)
    best: list[dict[str, Any]] = [
        {
            "number": number,
            "box": [round(float(edge), 2) for edge in found.boxes[number]],
            "score": round(float(found.scores[number]), 6),
            **({} if names is None else {"name": names[number]}),
        }
        for number in found.order(top)
    ]
    if as_json:
        print_json({"image": image, "expression": expression, "candidates": len(found.scores), "best": best})
        return
    rows = [[str(b["number"]), _place(b["box"]), f"{100 * b['score']:.1f} %", str(b.get("name", ""))] for b in best]
    columns = ("candidate", "x1, y1 - x2, y2", "score", "name")
    shown = len(columns) if names is not None else 3
    print_table("", columns[:shown], [row[:shown] for row in rows], left=(1, 3))
    if picture is not None:
        note(f"written: {picture}")


def _place(box: list[float]) -> str:
    x1, y1, x2, y2 = (f"{edge:.0f}" for edge in box)
    return f"{x1}, {y1} - {x2}, {y2}"
