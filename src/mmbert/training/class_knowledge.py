"""What the teacher of the objective ``class_names`` knows of a corpus's groups, from their images and their names.

In: records and the teacher. Out: one distribution over its classes per group.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from mmbert.api.features import open_encoder
from mmbert.data.records import Record
from mmbert.errors import ConfigError
from mmbert.objectives.class_names import Teacher
from mmbert.tasks.base import group_number
from mmbert.vision.images import load_image

LANGUAGE = "en"
"""Of the names of ImageNet's classes."""
FURTHER = 0.5
"""What a class counts whose name is one of a group's further texts, against one whose name is a caption."""


def class_distributions(teacher: Teacher | None, records: Sequence[Record]) -> dict[int, Tensor]:
    """[C] per group: of its images' classifications and of its names' classes.

    Groups without images have the classes of their names alone, where there are any.

    Raises:
        ConfigError: there is no teacher, or its encoder gives no distribution over ImageNet's 1,000 classes.
    """
    if teacher is None:
        raise ConfigError(
            "objective class_names needs a teacher", hint="teacher: {encoder: 'grid:BACKBONE,weights=FILE'}"
        )
    by_image = classified(teacher, [record for record in records if record.image is not None])
    by_name = named_classes(records)
    found = dict(by_name)
    for group, distribution in by_image.items():
        named = by_name.get(group)
        found[group] = distribution if named is None else teacher.names * named + (1 - teacher.names) * distribution
    return found


def named_classes(records: Sequence[Record]) -> dict[int, Tensor]:
    """[1000] per group that has the name of an ImageNet class among its English texts: even over those classes.

    A caption names a class where it is one of the class's names, or the last word of one ("frog" of "tree frog");
    where none does, a further text names a class if it is one of its names.
    """
    info = ImageNetInfo()
    full: dict[str, set[int]] = defaultdict(set)
    heads: dict[str, set[int]] = defaultdict(set)
    for number in range(1000):
        for name in map(_plain, info.index_to_description(number).split(",")):
            full[name].add(number)
            heads[name.split(" ")[-1]].add(number)
    found = {}
    for record in {record.group: record for record in records}.values():
        classes = _classes_of(record, full, heads)
        if classes:
            distribution = torch.zeros(1000)
            for number, share in classes.items():
                distribution[number] = share
            found[group_number(record.group)] = distribution / distribution.sum()
    return found


def _classes_of(record: Record, full: Mapping[str, set[int]], heads: Mapping[str, set[int]]) -> dict[int, float]:
    captions = [_plain(text) for text in record.captions.get(LANGUAGE, ())]
    named = {number: 1.0 for text in captions for number in full.get(text, set()) | heads.get(text, set())}
    if named:
        return named
    return {n: FURTHER for text in record.texts.get(LANGUAGE, ()) for n in full.get(_plain(text), set())}


def _plain(text: str) -> str:
    """Lower-case words without plurals."""
    words = re.findall(r"[a-z]+", text.lower())
    return " ".join(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words)


def classified(teacher: Teacher, records: Sequence[Record]) -> dict[int, Tensor]:
    """[C] per group: mean over its images of the teacher's distribution.

    Logits are centred over the images first: a class that it sees in every drawing says nothing.
    """
    encoder = open_encoder(f"{teacher.encoder},classes=true").quick()
    logits: list[Tensor] = []
    for start in range(0, len(records), 32):
        images = [load_image(record.image) for record in records[start : start + 32] if record.image is not None]
        regions = encoder.extract(images)
        if regions[0].classes is None or regions[0].classes.shape[1] != 1000:
            raise ConfigError(f"objective class_names: {teacher.encoder} does not know ImageNet's 1,000 classes")
        logits.extend(torch.from_numpy(found.classes[0]).clamp(min=1e-9).log() for found in regions)  # type: ignore[index]
    if not logits:
        return {}
    table = torch.stack(logits)
    distributions = ((table - table.mean(0)) / teacher.temperature).softmax(1)
    sums: dict[int, list[Tensor]] = defaultdict(list)
    for record, distribution in zip(records, distributions, strict=True):
        sums[group_number(record.group)].append(distribution)
    return {group: torch.stack(rows).mean(0) for group, rows in sums.items()}
