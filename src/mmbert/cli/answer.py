"""Answer a question about an image with a model that was trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbert.cli._vqa import AnswererOption
from mmbert.cli.common import DeviceOption, Int8Option, JsonOption, load_model, print_json
from mmbert.errors import UsageError


def answer(
    image: Annotated[Path, typer.Argument(help="Image file.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What is asked.", show_default=False)],
    model: AnswererOption,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="So many answers, the most probable first.")] = 5,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box", help="An object that the model shall look into: x1,y1,x2,y2 in pixels. May be given several times."
        ),
    ] = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about an image: the most probable answers, with their probabilities.

    Examples:

      mmbert answer kitchen.jpg "What is on the table?" --model runs/vqa/best
      mmbert answer scene.jpg "What is left of the dog?" -m runs/vqa/best --box 3,8,60,71 --box 90,12,140,66 --json
    """
    boxes = None if not box else [_corners(text) for text in box]
    found = load_model(model, device, int8=int8).answer(image, question, k=top, boxes=boxes)
    if as_json:
        answers = [{"answer": one.text, "probability": one.probability} for one in found]
        print_json({"image": image, "question": question, "answers": answers})
        return
    for one in found:
        print(f"{100 * one.probability:5.1f} %  {one.text}")


def _corners(text: str) -> list[float]:
    """``"1,2,30,40"`` as numbers.

    Raises:
        UsageError: these are not four numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UsageError(f"--box {text!r} is not x1,y1,x2,y2", hint="four numbers, such as --box 3,8,60,71")
    return numbers
