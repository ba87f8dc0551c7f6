"""Placing drawings: concepts go in, a :class:`Scene` comes out.

The canvas is divided into cells and each object stands somewhere in a cell of its own, so no two ever overlap, and a
scene takes a fraction of a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from mmbert.data.records import RegionBox
from scenes.concepts import Concept, concept
from scenes.drawings import Drawings
from scenes.grounds import GROUNDS, Ground

RELATIONS = ("left", "right", "above", "below")
MARGIN = 1  # pixels around each object that stay free
CLEAR = 1.5  # times farther along the one axis than along the other: only then a relation has a name

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placed:
    """One object of a scene.

    Args:
        concept: what it is.
        style: in which style it is drawn.
        box: x1, y1, x2, y2 in pixels; x2 and y2 are the first column and row behind it.
        cell: number of the cell it stands in, row by row.
    """

    concept: Concept
    style: str
    box: Box
    cell: int

    @property
    def centre(self) -> tuple[float, float]:
        """x and y in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    Args:
        image: RGB.
        objects: in the order they were asked for.
        ground: colour of the ground.
        grid: rows and columns of cells.
    """

    image: Image.Image = field(repr=False)
    objects: tuple[Placed, ...]
    ground: Ground
    grid: tuple[int, int]

    def relation(self, one: int, other: int) -> str | None:
        """Where object ``one`` is, seen from object ``other``; see :func:`relation`."""
        return relation(self.objects[one].box, self.objects[other].box)

    def count(self, name: str) -> int:
        """How many objects are of the concept ``name``."""
        return sum(placed.concept.name == name for placed in self.objects)

    def region_boxes(self, named: bool = False) -> tuple[RegionBox, ...]:
        """The boxes as records hold them, in the order of the objects; without names unless asked."""
        boxes = [(placed, tuple(float(side) for side in placed.box)) for placed in self.objects]
        return tuple(RegionBox(box, placed.concept.name if named else "") for placed, box in boxes)  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON: ground, and name, kind, style and box of each object."""
        return {
            "ground": self.ground.name,
            "objects": [
                {"name": o.concept.name, "kind": o.concept.kind, "style": o.style, "box": list(o.box)}
                for o in self.objects
            ],
        }


def relation(one: Box, other: Box) -> str | None:
    """``left``, ``right``, ``above`` or ``below``: where box ``one`` is, seen from box ``other``.

    None where neither says it clearly: the boxes' centres have to lie ``CLEAR`` times farther apart along that axis
    than along the other, and the boxes must not overlap along it.
    """
    dx, dy = ((one[i] + one[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1))
    if abs(dx) >= CLEAR * abs(dy) and (one[2] <= other[0] or other[2] <= one[0]):
        return "left" if dx < 0 else "right"
    if abs(dy) >= CLEAR * abs(dx) and (one[3] <= other[1] or other[3] <= one[1]):
        return "above" if dy < 0 else "below"
    return None


def place_of(placed: Placed, size: int) -> tuple[str, str]:
    """Third of the canvas that an object's centre is in: (``top``, ``middle``, ``bottom``), (``left``, ...)."""
    x, y = (min(2, int(3 * at / size)) for at in placed.centre)
    return ("top", "middle", "bottom")[y], ("left", "middle", "right")[x]


def grid_for(objects: int) -> tuple[int, int]:
    """Rows and columns with room for so many objects and, from three on, at least one free cell."""
    columns = max(2, math.ceil(math.sqrt(objects + (objects > 2))))
    rows = max(2, math.ceil((objects + (objects > 2)) / columns))
    return rows, columns


class Composer:
    """Makes scenes on square canvases.

    Args:
        size: side of the canvas in pixels.
        styles: styles that objects are drawn in.
        fill: shortest and longest length of an object's longer side, as shares of its cell.
        grounds: colours to draw from.
    """

    def __init__(
        self,
        size: int = 128,
        styles: Sequence[str] = ("twemoji", "noto"),
        fill: tuple[float, float] = (0.65, 0.95),
        grounds: Sequence[Ground] = GROUNDS,
    ) -> None:
        self.size = size
        self.fill = fill
        self.grounds = tuple(grounds)
        self.drawings = Drawings(styles)

    def compose(
        self,
        rng: np.random.Generator,
        wanted: Sequence[Concept | str],
        *,
        ground: Ground | None = None,
        style: str | None = None,
        grid: tuple[int, int] | None = None,
        cells: Sequence[int] | None = None,
    ) -> Scene:
        """Place objects.

        Args:
            rng: decides what is not given.
            wanted: concepts or their names; one that is named twice is there twice.
            ground: colour of the ground.
            style: of all objects; else each has its own.
            grid: rows and columns of cells; :func:`grid_for` where not given.
            cells: for each object its cell, row by row; all different.

        Raises:
            ValueError: more objects than cells, or cells given twice or that are not there.
        """
        things = [concept(one) if isinstance(one, str) else one for one in wanted]
        rows, columns = grid or grid_for(len(things))
        if cells is None:
            if len(things) > rows * columns:
                raise ValueError(f"{len(things)} objects for {rows * columns} cells")
            cells = [int(cell) for cell in rng.permutation(rows * columns)[: len(things)]]
        if len(set(cells)) != len(things) or not all(0 <= cell < rows * columns for cell in cells):
            raise ValueError(f"cells {list(cells)} for {len(things)} objects on {rows} x {columns}")
        colour = ground or self.grounds[int(rng.integers(len(self.grounds)))]
        image = Image.new("RGB", (self.size, self.size), colour.rgb)
        objects = tuple(
            self._place(rng, image, thing, style, cell, (rows, columns))
            for thing, cell in zip(things, cells, strict=True)
        )
        return Scene(image, objects, colour, (rows, columns))

    def _place(
        self,
        rng: np.random.Generator,
        image: Image.Image,
        thing: Concept,
        style: str | None,
        cell: int,
        grid: tuple[int, int],
    ) -> Placed:
        """Draw one object somewhere in its cell."""
        style = style or self.drawings.styles[int(rng.integers(len(self.drawings.styles)))]
        row, column = divmod(cell, grid[1])
        left, right = (self.size * (column + side) // grid[1] for side in (0, 1))
        top, bottom = (self.size * (row + side) // grid[0] for side in (0, 1))
        room = min(right - left, bottom - top) - 2 * MARGIN
        drawing = self.drawings.at(thing, style, max(4, int(room * rng.uniform(*self.fill))))
        width, height = drawing.size
        x = int(rng.integers(left + MARGIN, right - MARGIN - width + 1))
        y = int(rng.integers(top + MARGIN, bottom - MARGIN - height + 1))
        image.paste(drawing, (x, y), drawing)
        return Placed(thing, style, (x, y, x + width, y + height), cell)
