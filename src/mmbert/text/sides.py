"""Left and right in English texts: what changes where an image is mirrored."""

from __future__ import annotations

import re

_SIDE = re.compile(r"\b(left|right)(?=(?:most|ward|wards|side|hand|handed)?\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def swap_sides(text: str) -> str:
    """``"The leftmost dog"`` -> ``"The rightmost dog"``: left and right change places, capitals stay as they were."""
    return _SIDE.sub(lambda found: _like(_OTHER[found.group().lower()], found.group()), text)


def _like(word: str, model: str) -> str:
    """``word`` in the capitals of ``model``."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
