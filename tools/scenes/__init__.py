"""Scenes composed of the starter corpus's drawings: several objects on a coloured ground, each with its known box.

First step of the tools that build learning problems (``tools/build_*.py``). In: the drawings and names that ship with
the package. Out: a picture, and what is in it, so that questions and captions can be made whose answer needs the
picture. Everything is decided by the random generator that the caller gives::

    composer = Composer(size=128)
    scene = composer.compose(np.random.default_rng(1), ["cat", "dog", "dog"])
    scene.image, scene.ground.name, [(o.concept.name, o.box) for o in scene.objects]
    scene.relation(0, 1)  # "left", "right", "above", "below", or None where neither is clear
"""

from scenes.compose import RELATIONS, Composer, Placed, Scene, place_of, relation
from scenes.concepts import CONCEPTS, Concept, concept, concepts
from scenes.drawings import Drawings
from scenes.grounds import GROUNDS, Ground

__all__ = [
    "CONCEPTS",
    "GROUNDS",
    "RELATIONS",
    "Composer",
    "Concept",
    "Drawings",
    "Ground",
    "Placed",
    "Scene",
    "concept",
    "concepts",
    "place_of",
    "relation",
]
