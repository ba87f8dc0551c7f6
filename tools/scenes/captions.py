"""Captions of scenes in four languages, made from templates over the real names.

Templates keep every name in its dictionary form (a nominative), so that a caption holds it letter by letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scenes.compose import Scene
from scenes.concepts import Concept
from scenes.grounds import Ground

LANGUAGES = ("en", "de", "fr", "cs")
KINDS = {
    "animal": "an animal",
    "fruit": "a fruit",
    "vegetable": "a vegetable",
    "snack": "a snack",
    "instrument": "an instrument",
    "vehicle": "a vehicle",
    "tool": "a tool",
    "plant": "a plant",
    "garment": "a garment",
    "building": "a building",
    "furniture": "a piece of furniture",
    "thing": "a thing",
}
"""Kind of a concept to what English says where it does not name the thing itself."""

_ARTICLES = {"de": {"m": "ein", "f": "eine", "n": "ein"}, "fr": {"m": "un", "f": "une"}}
_GROUNDS = {
    "white": ("white background", "weißer Hintergrund", "fond blanc", "bílé pozadí"),
    "black": ("black background", "schwarzer Hintergrund", "fond noir", "černé pozadí"),
    "red": ("red background", "roter Hintergrund", "fond rouge", "červené pozadí"),
    "orange": ("orange background", "oranger Hintergrund", "fond orange", "oranžové pozadí"),
    "yellow": ("yellow background", "gelber Hintergrund", "fond jaune", "žluté pozadí"),
    "green": ("green background", "grüner Hintergrund", "fond vert", "zelené pozadí"),
    "blue": ("blue background", "blauer Hintergrund", "fond bleu", "modré pozadí"),
    "purple": ("purple background", "lila Hintergrund", "fond violet", "fialové pozadí"),
}
_CORNERS = (  # cells of a grid of 2 x 2
    ("at the top left", "oben links", "en haut à gauche", "vlevo nahoře"),
    ("at the top right", "oben rechts", "en haut à droite", "vpravo nahoře"),
    ("at the bottom left", "unten links", "en bas à gauche", "vlevo dole"),
    ("at the bottom right", "unten rechts", "en bas à droite", "vpravo dole"),
)
_SIDES = {
    "left": ("on the left", "links", "à gauche", "vlevo"),
    "right": ("on the right", "rechts", "à droite", "vpravo"),
    "above": ("at the top", "oben", "en haut", "nahoře"),
    "below": ("at the bottom", "unten", "en bas", "dole"),
}


@dataclass(frozen=True)
class Mention:
    """One part of a caption.

    Args:
        concept: what is there.
        place: where, in each of ``LANGUAGES``; None where it is only counted.
        count: how many.
    """

    concept: Concept
    place: tuple[str, ...] | None
    count: int = 1


def phrase(concept: Concept, language: str) -> str:
    """The name with its indefinite article, where the language has one: ``a cat``, ``eine Katze``, ``kočka``."""
    name = concept.names[language]
    if language == "en":
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    article = _ARTICLES.get(language)
    return f"{article[concept.genders[language]]} {name}" if article is not None else name


def mentions(scene: Scene, *, counted: bool = False, sides: bool = False) -> list[Mention]:
    """What a caption of the scene says.

    Args:
        scene: on a grid of 2 x 2.
        counted: how many of each, instead of where each is.
        sides: say of two objects only on which side each is; the scene has to have a clear relation.
    """
    if counted:
        names = dict.fromkeys(o.concept for o in scene.objects)
        return [Mention(concept, None, scene.count(concept.name)) for concept in names]
    if sides:
        places = [scene.relation(0, 1), scene.relation(1, 0)]
        return [Mention(o.concept, _SIDES[str(place)]) for o, place in zip(scene.objects, places, strict=True)]
    return [Mention(o.concept, _CORNERS[o.cell]) for o in scene.objects]


def caption(said: Sequence[Mention], ground: Ground, language: str, vague: int | None = None) -> str:
    """``a cat at the top left, a dog at the bottom right, red background``.

    Args:
        said: the parts, in their order.
        ground: the colour behind them.
        language: one of ``LANGUAGES``.
        vague: number of the part of which only the kind is told (in English).
    """
    number = LANGUAGES.index(language)
    parts = []
    for i, mention in enumerate(said):
        what = KINDS[mention.concept.kind] if i == vague else phrase(mention.concept, language)
        if mention.place is None:
            parts.append(f"{mention.count} × {mention.concept.names[language]}")
        else:
            parts.append(f"{what} {mention.place[number]}")
    return ", ".join([*parts, _GROUNDS[ground.name][number]])


def captions(said: Sequence[Mention], ground: Ground) -> Mapping[str, str]:
    """The caption in each of ``LANGUAGES``."""
    return {language: caption(said, ground, language) for language in LANGUAGES}
