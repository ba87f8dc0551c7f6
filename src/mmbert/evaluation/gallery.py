"""The gallery of an evaluation: records go in, distinct images and distinct texts with their groups come out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from mmbert import plugins
from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError, UsageError
from mmbert.evaluation.ranks import Array, as_numbers


@dataclass(frozen=True)
class Gallery:
    """What is asked and what can be found.

    Args:
        images: each distinct image once.
        image_group: ``[images]``; equal numbers depict the same thing.
        image_origin: where each image was named, for messages.
        texts: the captions, those of one language side by side.
        text_group: ``[texts]``, comparable with ``image_group``.
        languages: language -> its range of rows in ``texts``.
        gloss: group -> an English caption, where there is one (even if English is not evaluated).
    """

    images: list[ImageRef]
    image_group: Array
    image_origin: list[str]
    texts: list[str]
    text_group: Array
    languages: dict[str, slice]
    gloss: dict[int, str] = field(default_factory=dict)

    @cached_property
    def distinct_texts(self) -> tuple[list[str], Array]:
        """Each string once, and for each row of ``texts`` its place among them."""
        places, numbers = as_numbers(self.texts)
        return list(numbers), places

    @cached_property
    def names(self) -> dict[int, str]:
        """Group -> what to call it: its English caption, else its first one."""
        return dict(zip(self.text_group[::-1].tolist(), self.texts[::-1], strict=True)) | self.gloss

    def without_images(self, keep: Sequence[int]) -> Gallery:
        """The same with only the images at ``keep``; texts stay, as wrong answers where their image has gone."""
        return replace(
            self,
            images=[self.images[i] for i in keep],
            image_group=self.image_group[list(keep)],
            image_origin=[self.image_origin[i] for i in keep],
        )

    def language_of(self, row: int) -> str:
        """Language of text ``row``."""
        return next(language for language, rows in self.languages.items() if rows.start <= row < rows.stop)


def build_gallery(
    records: Iterable[Record], languages: Sequence[str] | None = None, *, texts_alone: bool = False
) -> Gallery:
    """Collect the distinct images and captions of ``records``.

    Equal image keys are one image; if they come with different groups, these groups are one. A caption that a group
    has twice in one language is one text. Records without image are left out, unless ``texts_alone`` keeps their texts.

    Raises:
        UsageError: a language in ``languages`` that no caption is in.
        DataError: no record has both an image and captions (with ``texts_alone``: any caption).
    """
    kept = [record for record in records if texts_alone or record.image is not None]
    groups = Groups()
    images: dict[str, tuple[ImageRef, str, str]] = {}
    for position, record in enumerate(kept):
        if record.image is None:
            continue
        key = record.image.key or f"\0{position}"  # no key: an image of its own
        groups.join(record.group, images.setdefault(key, (record.image, record.group, record.origin or record.id))[1])
    # language -> (group, text), each once and in order
    texts: dict[str, dict[tuple[str, str], None]] = {}
    gloss: dict[str, str] = {}
    for record in kept:
        group = groups.of(record.group)
        for language, captions in record.captions.items():
            texts.setdefault(language, {}).update({(group, caption): None for caption in captions})
            if language == "en" and captions:
                gloss.setdefault(group, captions[0])
    if not any(texts.values()):
        what = "a caption" if texts_alone else "an image and a caption"
        raise DataError(f"no record has {what}: nothing to evaluate")
    chosen = _choose(languages, sorted(language for language, rows in texts.items() if rows))
    pairs: list[tuple[str, str]] = []
    bounds: dict[str, slice] = {}
    for language in chosen:
        bounds[language] = slice(len(pairs), len(pairs) + len(texts[language]))
        pairs.extend(texts[language])
    shown = [groups.of(group) for _, group, _ in images.values()]
    every, numbers = as_numbers([*shown, *(group for group, _ in pairs), *gloss])
    return Gallery(
        images=[image for image, _, _ in images.values()],
        image_group=every[: len(shown)],
        image_origin=[origin for _, _, origin in images.values()],
        texts=[text for _, text in pairs],
        text_group=as_array(numbers[group] for group, _ in pairs),
        languages=bounds,
        gloss={numbers[group]: text for group, text in gloss.items()},
    )


def as_array(numbers: Iterable[int]) -> Array:
    """Integers as ``[n]`` int64."""
    return np.fromiter(numbers, dtype=np.int64)


def _choose(wanted: Sequence[str] | None, present: list[str]) -> list[str]:
    if wanted is None:
        return present
    if not wanted:
        raise UsageError("no language to evaluate", hint=f"there are: {', '.join(present)}")
    for language in wanted:
        if language not in present:
            close = plugins.nearest(language, present)
            known = f"there are: {', '.join(present)}"
            raise UsageError(
                f"no captions in language {language!r}", hint=f"did you mean {close!r}? {known}" if close else known
            )
    return list(dict.fromkeys(wanted))


class Groups:
    """Group names that turned out to mean the same (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, group: str) -> str:
        """The name by which the group and all joined with it go."""
        parent = self._parent
        while parent.setdefault(group, group) != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    def join(self, one: str, other: str) -> None:
        """Make them one."""
        self._parent[self.of(one)] = self.of(other)
