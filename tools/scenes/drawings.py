"""Drawings of the concepts, cut out along their alpha and scaled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from mmbert.vision.images import load_image
from scenes.concepts import Concept, drawn

_VISIBLE = 24  # of 255: fainter pixels are the soft rim of a shadow


class Drawings:
    """Opens drawings; each is decoded once, and each size of it is made once.

    Args:
        styles: styles of the starter corpus to draw in.
    """

    def __init__(self, styles: Sequence[str] = ("twemoji", "noto")) -> None:
        self.styles = tuple(styles)
        self._cut_out = lru_cache(maxsize=None)(self._cut)
        self._scaled = lru_cache(maxsize=20_000)(self._scale)

    def at(self, concept: Concept, style: str, longest: int) -> Image.Image:
        """The drawing without its empty rim: RGBA, the longer side ``longest`` pixels. It is kept: do not change it."""
        return self._scaled(concept.name, style, longest)

    def _cut(self, name: str, style: str) -> Image.Image:
        image = drawn()[name][style].image
        assert image is not None, "every record of a drawing has one"
        drawing = load_image(image, keep_alpha=True)
        return drawing.crop(drawing.getchannel("A").point(lambda alpha: 255 * (alpha > _VISIBLE)).getbbox())

    def _scale(self, name: str, style: str, longest: int) -> Image.Image:
        drawing = self._cut_out(name, style)
        factor = longest / max(drawing.size)
        width, height = (max(2, round(side * factor)) for side in drawing.size)
        return drawing.resize((width, height), Image.Resampling.LANCZOS)
