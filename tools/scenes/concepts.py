"""What scenes are made of: concepts that every style draws as one clear object, with short names.

Chosen by eye from the starter corpus: no concept that its starter model never saw (``held_out``), none whose name is a
plural or a phrase in the languages that captions are written in. The names come from the corpus; what is written out
here is what it does not say: the kind of thing, and the gender of the German and the French name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

from mmbert.data.records import Record
from mmbert.data.sources import open_data

# English name of the corpus, gender of the German name (m, f, n), gender of the French name (m, f).
_TABLE = {
    "animal": (
        "mouse f f, cow f f, tiger m m, rabbit m m, cat f m, crocodile n m, whale m f, snail f m, snake f m, horse n m,"
        "goat f f, chicken n f, dog m m, pig n m, octopus m f, ant f f, fish m m, turtle f f, penguin m m, crab m m,"
        "bat f f, shark m m, owl f f, butterfly m m, lizard f m, giraffe f f, zebra n m, hedgehog m m, kangaroo n m,"
        "parrot m m, swan m m, flamingo m m, deer m m, duck f m, eagle m m, dolphin m m"
    ),
    "fruit": "lemon f m, banana f f, pineapple f m, pear f f, strawberry f f, watermelon f f, peach m f",
    "vegetable": "tomato f f, cucumber f m, carrot f f, onion f m, mushroom m m",
    "snack": "hamburger m m, pizza f f, doughnut m m, egg n m, croissant n m, cookie m m",
    "instrument": "guitar f f, trumpet f f, violin f m, drum f f, saxophone n m, accordion n m",
    "vehicle": (
        "airplane n m, rocket f f, helicopter m m, bus m m, tractor m m, ship n m, bicycle n m, motorcycle n f"
    ),
    "tool": "hammer m m, axe f f, broom m m, spoon m f, pencil m m, ladder f f, screwdriver m m",
    "plant": "tulip f f, sunflower f m, rose f f, cactus m m",
    "garment": "dress n f, scarf m m, crown f f, ring m f, umbrella m m, watch f f",
    "building": "house n f, castle n m, church f f",
    "furniture": "door f f, bed n m, chair m f, window n f, mirror m m",
    "thing": (
        "key m f, candle f f, anchor m f, balloon m m, compass m f, bucket m m, bell f f, bone m m, tooth m f,"
        "television m m, feather f f, coin f f"
    ),
}
_PLURALS = {"mouse": "mice", "fish": "fish", "deer": "deer", "tooth": "teeth", "scarf": "scarves", "tomato": "tomatoes"}


@dataclass(frozen=True)
class Concept:
    """One thing that scenes hold.

    Args:
        name: English name in the corpus; identifies the concept.
        codepoints: key of the concept in the starter corpus.
        kind: class of things, an English noun that names any of them ("animal", "tool").
        names: language -> name, in the 24 languages.
        genders: of the German ("m", "f", "n") and the French name ("m", "f").
    """

    name: str
    codepoints: str
    kind: str
    names: Mapping[str, str] = field(repr=False, hash=False, compare=False)
    genders: Mapping[str, str] = field(repr=False, hash=False, compare=False)

    @property
    def plural(self) -> str:
        """English plural."""
        if self.name in _PLURALS:
            return _PLURALS[self.name]
        if self.name.endswith(("s", "sh", "ch", "x")):
            return f"{self.name}es"
        if self.name.endswith("y") and self.name[-2] not in "aeiou":
            return f"{self.name[:-1]}ies"
        return f"{self.name}s"

    @property
    def article(self) -> str:
        """English indefinite article."""
        return "an" if self.name[0] in "aeiou" else "a"


@cache
def drawn() -> dict[str, dict[str, Record]]:
    """English name -> style -> the drawing's record, of everything in the starter corpus."""
    source = open_data("starter:all")  # in one go: what costs time is converting the names of each concept
    found: dict[str, dict[str, Record]] = {}
    for record in (source[i] for i in range(len(source))):
        found.setdefault(record.captions["en"][0], {})[record.extra["style"]] = record
    return found


@cache
def _all() -> dict[str, Concept]:
    found = {}
    for kind, entries in _TABLE.items():
        for entry in entries.split(","):
            name, german, french = entry.split()
            record = next(iter(drawn()[name].values()))
            names = {language: captions[0] for language, captions in record.captions.items()}
            found[name] = Concept(name, record.group, kind, names, {"de": german, "fr": french})
    return found


CONCEPTS = tuple(entry.split()[0] for entries in _TABLE.values() for entry in entries.split(","))
"""Names of all concepts, kind by kind."""


def concept(name: str) -> Concept:
    """The concept of an English name; KeyError where scenes have none."""
    return _all()[name]


def concepts(kinds: Collection[str] | None = None) -> list[Concept]:
    """All concepts, or those of some kinds, in the order of the table."""
    return [one for one in _all().values() if kinds is None or one.kind in kinds]
