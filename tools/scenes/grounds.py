"""Colours of the ground that scenes stand on, light enough that every drawing is seen on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ground:
    """A colour with its name.

    Args:
        name: English name; identifies it.
        rgb: the colour, 0..255.
    """

    name: str
    rgb: tuple[int, int, int]


GROUNDS = (
    Ground("white", (250, 250, 250)),
    Ground("black", (45, 45, 45)),
    Ground("red", (235, 120, 115)),
    Ground("orange", (248, 178, 100)),
    Ground("yellow", (250, 235, 120)),
    Ground("green", (145, 215, 140)),
    Ground("blue", (130, 180, 250)),
    Ground("purple", (195, 155, 235)),
)
"""All of them."""
