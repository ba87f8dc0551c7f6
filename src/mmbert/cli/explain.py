"""`mmbert explain`: show which parts of an image each word of a caption looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmbert.cli._pictures import FontsOption, note_pictures
from mmbert.cli._tables import print_table
from mmbert.cli.common import (
    DeviceOption,
    Int8Option,
    JsonOption,
    ModelOption,
    load_model,
    note,
    output_path,
    print_json,
)
from mmbert.errors import UsageError

OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".svg", ".pdf")


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    caption: Annotated[str, typer.Argument(metavar="CAPTION", help="What is to be read together with it.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with pictures.")] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", help="A .png: the image once for each word. Else a folder for each picture of the page."),
    ] = None,
    boxes: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X1,Y1,X2,Y2", help="In pixels; for models that look into given boxes."),
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="From 0. Default: the mean over all.")] = None,
    head: Annotated[int | None, typer.Option("--head", help="From 0. Default: the mean over all.")] = None,
    fonts: FontsOption = None,
    model: ModelOption = "starter",
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Show which parts of an image each word of a caption looks at.

    Prints for each word the region that gets most of its attention. The page has the image once for each word, lines
    from what looks to what is looked at (head view and model view), attention among regions, and every head. Models
    that do not divide images themselves (VL-BERT's with a ResNet) look into the boxes that are given, and at the whole
    image.

    Examples:

      mmbert explain dog.jpg "ein Hund am Strand"
      mmbert explain dog.jpg "ein Hund am Strand" --html look.html --png look.png --layer 3
      mmbert explain dog.jpg "ein Hund am Strand" --png pictures
      mmbert explain dog.jpg "a dog on a beach" --model vl-bert-base-e2e --box 30,40,180,200 --box 0,150,320,240
    """
    from mmbert.explain.attention import attention_maps
    from mmbert.explain.figures import can_draw
    from mmbert.explain.page import explain_picture, save_picture, strengths, write_explain_page
    from mmbert.vision.images import load_image

    page = None if html is None else output_path(html)
    if png is not None and png.suffix.lower() in OTHER_PICTURES:
        raise UsageError(f"pictures are PNG, not {png.suffix}", hint="give a name with .png, or a folder")
    sheet = output_path(png) if png is not None and png.suffix.lower() == ".png" else None
    folder = png if sheet is None else None
    can_draw(folder)
    opened = load_image(image)
    bert = load_model(model, device, int8=int8)
    maps = attention_maps(bert, image, caption, [_as_box(one) for one in boxes or []])
    looks = maps.word_to_region(layer, head)
    if page is not None:
        facts = [("Image", image.name), ("Model", model)]
        write_explain_page(page, maps, opened, layer=layer, head=head, facts=facts)
    if sheet is not None:
        font = fonts[0] if fonts else None
        save_picture(sheet, explain_picture(maps, opened, layer=layer, head=head, font=font))
    if folder is not None:
        from mmbert.explain.pictures import write_attention_pictures

        note_pictures(*write_attention_pictures(folder, maps, opened, layer=layer, head=head, fonts=fonts or ()))
    rows: list[dict[str, Any]] = []
    for word, row in zip(maps.words, looks, strict=True):
        best = int(strengths(row).argmax()) + 1 if len(row) > 1 else 0
        box = [round(float(edge), 4) for edge in maps.boxes[best]]
        rows.append({"word": word, "region": best, "box": box, "share": float(row[best] / row.sum())})
    if as_json:
        print_json({"image": image, "caption": caption, "match": maps.match, "words": rows, "attention": looks})
        return
    if maps.match is not None:
        print(f"image and caption belong together: {100 * maps.match:.1f} %")
    shown = [[row["word"], str(row["region"]), _place(row["box"]), f"{100 * row['share']:.1f} %"] for row in rows]
    print_table("", ("word", "region", "where (left-right, top-bottom)", "share of its attention"), shown, left=(0, 2))
    for path in (page, sheet):
        if path is not None:
            note(f"written: {path}")


def _as_box(given: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = map(float, given.split(","))
    except ValueError as error:
        raise UsageError(f"{given!r} is no box", hint="four numbers: --box X1,Y1,X2,Y2") from error
    return left, top, right, bottom


def _place(box: list[float]) -> str:
    left, top, right, bottom = (f"{100 * edge:.0f}" for edge in box)
    return f"{left}-{right} %, {top}-{bottom} %"
