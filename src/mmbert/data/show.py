"""Showing what is in a corpus: some of its records go in, a page (or plain rows) comes out.

Any source can be shown. What a record's annotation says is laid out by its keys: a question with answers or choices, an
expression with its box, phrases of captions tied to boxes; other keys, and these where they hold something else, are
shown as they are.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmbert import __version__, html
from mmbert.data.records import Record, Source
from mmbert.errors import ImageError
from mmbert.vision.images import load_image
from mmbert.vision.regions import Regions

PICTURE_SIDE = 640
"""Pixels of the longer side of a picture on the page."""
COLOURS = 8
"""Box colours of the page; numbers beyond them begin anew."""
MOST_NAMES = 40
"""Boxes that are named below a picture."""
_LISTS: dict[str, tuple[str, ...]] = {
    "answers": (),
    "phrases": ("scene", "no_box"),
    "answer_choices": ("answer_label",),
    "rationale_choices": ("rationale_label",),
}
"""Keys of the annotation that are laid out where they hold a list, and the keys that go with them."""

Part = tuple[str, tuple[int, ...]]
"""Text, and the numbers (from 1) of the boxes that it is about."""


class RegionLookup(Protocol):
    """Regions by the key of their image; ``mmbert.vision.store.RegionStore`` is one."""

    def __contains__(self, key: object) -> bool: ...

    def regions(self, key: str) -> Regions:
        """Regions of one image; row 0 is the whole image."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a record says.

    Args:
        label: what it is; "" for captions.
        parts: the text.
        language: code of the language, if known.
        right: whether it is the right one of several; None where that is not asked or not known.
    """

    label: str
    parts: tuple[Part, ...]
    language: str = ""
    right: bool | None = None

    @property
    def text(self) -> str:
        """The text, boxes as ``[1]``."""
        return "".join(text + "".join(f"[{number}]" for number in boxes) for text, boxes in self.parts)


@dataclass(frozen=True, slots=True)
class ShownBox:
    """A box as it is drawn.

    Args:
        number: from 1; 0 for a true box that is none of the record's.
        box: x1, y1, x2, y2 in pixels.
        name: what to call it.
        polygons: outlines as ``x,y x,y ...``.
        right: it is what the expression means.
    """

    number: int
    box: tuple[float, float, float, float]
    name: str
    polygons: tuple[str, ...] = ()
    right: bool = False


def sample(source: Source, count: int, seed: int) -> list[Record]:
    """Some records, drawn at random, in the corpus's order; the same seed draws the same ones."""
    chosen = random.Random(seed).sample(range(len(source)), min(count, len(source)))
    return [source[index] for index in sorted(chosen)]


def boxes_of(record: Record) -> list[ShownBox]:
    """The record's boxes; the true one of an expression is marked, or added where it is none of them."""
    target, true = record.annotation.get("target"), _true_box(record)
    shown = [
        ShownBox(
            number,
            box.box,
            box.name + ("" if box.score is None else f" {box.score:.2f}"),
            tuple(_points(polygon) for polygon in box.polygons),
            target == number - 1 and not isinstance(target, bool),
        )
        for number, box in enumerate(record.boxes, 1)
    ]
    if true is not None and not any(box.right for box in shown):
        shown.append(ShownBox(0, true, "true box", (), True))
    return shown


def _true_box(record: Record) -> tuple[float, float, float, float] | None:
    box = record.annotation.get("box")
    if "expression" not in record.annotation or not isinstance(box, (list, tuple)) or len(box) != 4:
        return None
    if not all(isinstance(edge, (int, float)) for edge in box):
        return None
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _points(polygon: Sequence[float]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in zip(polygon[::2], polygon[1::2], strict=False))


def lines_of(record: Record) -> list[Line]:
    """What a record says in words: captions and texts, an expression, a question with its answers or choices."""
    said = record.annotation
    lines = list(_captions(record))
    if "expression" in said:
        lines.append(Line("expression", _plain(said["expression"])))
    if "question" in said:
        lines.append(Line("question", _tokens(said["question"])))
    if isinstance(said.get("answers"), (list, tuple)):
        counts = Counter(map(str, said["answers"])).most_common()
        text = ", ".join(answer if count == 1 else f"{answer} ×{count}" for answer, count in counts)
        lines.append(Line("answers", _plain(text)))
    if "answer" in said:
        lines.append(Line("answer", _plain(said["answer"]), right=True))
    for kind, label in (("answer", "answer"), ("rationale", "reason")):
        right = said.get(f"{kind}_label")
        for number, choice in enumerate(_list(said.get(f"{kind}_choices"))):
            mark = None if right is None else number == right
            lines.append(Line(f"{label} {number + 1}", _tokens(choice), right=mark))
    return lines


def rest_of(record: Record) -> list[tuple[str, str]]:
    """What else the record carries (numbers of questions and images, further columns): name and value as text."""
    shown = _laid_out(record)
    others = {**record.annotation, **record.extra}
    return [
        (key, _plain(value)[0][0])
        for key, value in others.items()
        if key not in shown and value is not None and value != ""
    ]


def _laid_out(record: Record) -> set[str]:
    """Keys of the annotation that lines and boxes show already."""
    said = record.annotation
    found = {"expression", "question", "answer"}
    if "expression" in said:
        found |= {"raw", "target", "box"} if _true_box(record) is not None else {"raw", "target"}
    for key, with_it in _LISTS.items():
        if isinstance(said.get(key), (list, tuple)):
            found |= {key, *with_it}
    return found


def _captions(record: Record) -> Iterator[Line]:
    phrases = _list(record.annotation.get("phrases"))
    for language, captions in record.captions.items():
        for number, caption in enumerate(captions):
            tied = phrases[number] if language == "en" and number < len(phrases) else ()
            yield Line("", _tied(caption, tied), language)
    for language, texts in record.texts.items():
        yield Line("also", _plain(", ".join(texts)), language)


def _tied(caption: str, phrases: Any) -> tuple[Part, ...]:
    """A caption cut at its phrases, each with the numbers of its boxes."""
    parts: list[Part] = []
    end = 0
    for phrase in _list(phrases):
        if isinstance(phrase, Mapping) and {"start", "end", "boxes"} <= phrase.keys() and _list(phrase["boxes"]):
            parts += [(caption[end : phrase["start"]], ())]
            parts += [(caption[phrase["start"] : phrase["end"]], tuple(number + 1 for number in phrase["boxes"]))]
            end = phrase["end"]
    return tuple(part for part in (*parts, (caption[end:], ())) if part[0])


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _tokens(tokens: Any) -> tuple[Part, ...]:
    """Text, or tokens with lists of box numbers among them."""
    if not isinstance(tokens, (list, tuple)):
        return _plain(tokens)
    parts: list[Part] = []
    for token in tokens:
        before = " " if parts and not (isinstance(token, str) and token in ".,?!;:") else ""
        if isinstance(token, str):
            parts.append((before + token, ()))
        elif isinstance(token, (list, tuple)) and all(isinstance(number, int) for number in token):
            parts.append((before, tuple(number + 1 for number in token)))
        else:
            return _plain(tokens)
    return tuple(parts)


def _plain(value: Any) -> tuple[Part, ...]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return ((text if len(text) <= 300 else text[:299] + "…", ()),)


def rows_of(record: Record) -> list[tuple[str, str]]:
    """The record as rows of a table: what it is, and the text."""
    rows = []
    for line in lines_of(record):
        mark = "" if line.right is None else "✓ " if line.right else "  "
        rows.append((line.label or line.language, mark + line.text))
        if line.label and line.language:
            rows[-1] = (f"{line.label} ({line.language})", rows[-1][1])
    names = [f"{_mark(box)} {box.name}".strip() for box in boxes_of(record)]
    if names:
        more = f" … and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        rows.append(("boxes", ", ".join(names[:MOST_NAMES]) + more))
    return rows + rest_of(record)


def _mark(box: ShownBox) -> str:
    return f"{box.number or ''}{'✓' if box.right else ''}"


def data_page(
    records: Sequence[Record],
    *,
    title: str = "Data",
    facts: Iterable[tuple[str, Any]] = (),
    regions: RegionLookup | None = None,
) -> str:
    """A page with the records: pictures with their boxes, and what is said about them.

    Args:
        records: what to show.
        title: of the page.
        facts: name and value of what a reader should know (corpus, counts).
        regions: draws the images' regions too, e.g. those of a detector.
    """
    return html.render(
        "data.html",
        title=title,
        facts=list(facts),
        version=__version__,
        samples=[_shown(record, regions) for record in records],
        colours=COLOURS,
        most_names=MOST_NAMES,
    )


def _shown(record: Record, regions: RegionLookup | None) -> dict[str, Any]:
    picture, size, width, fault = None, record.size, 420, ""
    if record.image is not None:
        try:
            image = load_image(record.image)
        except ImageError as error:
            fault = error.message
        else:
            picture = html.thumbnail(image, PICTURE_SIDE)
            size, width = size or image.size, _width(image.size)
    boxes = boxes_of(record) if size is not None else []
    return {
        "id": record.id,
        "split": record.split or "",
        "origin": record.origin,
        "has_image": record.image is not None,
        "image": picture,
        "fault": fault,
        "size": size,
        "boxes": sorted(boxes, key=lambda box: box.right),  # the true one is drawn on top
        "regions": None if regions is None or size is None else _region_boxes(record, size, regions),
        "lines": lines_of(record),
        "rest": rest_of(record),
        "width": width,
    }


def _region_boxes(record: Record, size: tuple[int, int], regions: RegionLookup) -> list[list[float]]:
    """x, y, width, height of each region but the whole image, in pixels of ``size``; none where none are stored."""
    key = record.regions or (record.image.key if record.image is not None else "")
    if key not in regions:
        return []
    found = regions.regions(key)
    scale = size[0] / found.size[0], size[1] / found.size[1]
    return [
        [x1 * scale[0], y1 * scale[1], (x2 - x1) * scale[0], (y2 - y1) * scale[1]]
        for x1, y1, x2, y2 in found.boxes[1:].tolist()
    ]


def _width(size: tuple[int, int]) -> int:
    """Widest that a picture is shown, in CSS pixels: never higher than 420, small ones at most three times as large."""
    width, height = size
    return round(width * min(420 / height, 3))


def as_dict(record: Record) -> dict[str, Any]:
    """Plain values of a record, for JSON (the picture's key, not its bytes)."""
    return {
        "id": record.id,
        "split": record.split,
        "image": record.image.key if record.image is not None else None,
        "size": record.size,
        "captions": {language: list(said) for language, said in record.captions.items()},
        "texts": {language: list(said) for language, said in record.texts.items()},
        "boxes": [{"box": list(b.box), "name": b.name, "score": b.score} for b in record.boxes],
        "annotation": dict(record.annotation),
        "extra": dict(record.extra),
        "origin": record.origin,
    }
