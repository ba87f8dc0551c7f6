"""Examples: one model sequence each, before tensors; and their collation into a packed batch.

A task turns records into examples; :func:`collate` lays the examples of one step out as a
:class:`~mmbert.model.packed.PackedBatch` in which every image stands once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmbert.data.images import AnyImage, BoxedImage, ImageInput, identity
from mmbert.errors import DataError
from mmbert.model.packed import NO_IMAGE, PackedBatch, Pixels, RegionTable, SequenceSpec, Target, pack
from mmbert.vision.regions import Regions

Scope = Literal["token", "region", "feature", "sequence", "written"]


@dataclass(slots=True)
class Label:
    """Labels of one example for one objective.

    Attributes:
        objective: the objective's name.
        scope: what ``places`` number: text positions, regions, rows of regions in the table (``feature``: read before
            the encoder), the sequence itself (``places`` is [0]), or positions of the written text.
        places: [m].
        values: [m, ...] labels. For region scope they may be None: the label is then the region's own table row.
        extra: [m] further numbers per place.
    """

    objective: str
    scope: Scope
    places: np.ndarray
    values: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(slots=True)
class Example:
    """One sequence of one record.

    Attributes:
        token_ids: [n] ids.
        segments: [n] segments or one for all.
        image: the image that the regions come from; None for text alone.
        ties: [n] region number that each token is tied to (0 = whole image), or one for all.
        region_numbers: [m] regions used, in order; None takes all.
        masked: [m] regions whose feature is hidden; None hides none. Region 0 is then the mean of the others.
        labels: what is to be predicted, by target name.
        written: [w] ids of the text that continues the sequence; None for none.
    """

    token_ids: np.ndarray
    segments: np.ndarray | int = 0
    image: AnyImage | None = None
    ties: np.ndarray | int = 0
    region_numbers: np.ndarray | None = None
    masked: np.ndarray | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    written: np.ndarray | None = None


def collate(
    examples: Sequence[Example], images: ImageInput | None = None, rng: np.random.Generator | None = None
) -> PackedBatch:
    """Lay examples out as one packed batch; each distinct image gets its rows in the region table once.

    Args:
        examples: the sequences of one step, of any tasks.
        images: where regions or pixels come from; needed as soon as one example has an image.
        rng: randomness of image augmentation; None augments nothing.

    Raises:
        DataError: an example has an image but ``images`` is missing.
    """
    refs: dict[str, AnyImage] = {}
    blanking = bool(getattr(images, "blanks_hidden", False))
    seen = [_seen(example, blanking) for example in examples]
    keys = [None if image is None else identity(image) for image in seen]
    for key, image in zip(keys, seen, strict=True):
        if key is not None and image is not None:
            refs.setdefault(key, image)
    if refs and images is None:
        raise DataError("examples have images, but there is no vision encoder and no region store")
    first_rows: list[int] = [0]
    table: RegionTable | None = None
    pixels: Pixels | None = None
    if refs and images is not None:
        first_rows, table, pixels = images.table(list(refs.values()), rng)
    number = {key: i for i, key in enumerate(refs)}
    extension = _Extension(first_rows[-1])
    specs: list[SequenceSpec] = []
    base_rows: list[np.ndarray | None] = []
    for example, key in zip(examples, keys, strict=True):
        if key is None:
            specs.append(SequenceSpec(example.token_ids, example.segments, NO_IMAGE))
            base_rows.append(None)
            _continue(specs[-1], example)
            continue
        i = number[key]
        spec, base = _with_image(example, np.arange(first_rows[i], first_rows[i + 1]), None if blanking else extension)
        specs.append(spec)
        base_rows.append(base)
        _continue(spec, example)
    if table is not None:
        extension.apply(table)
        for spec in specs:
            _settle(spec, extension.pooled_row(0))
    targets = _targets(examples, specs, base_rows)
    return pack(specs, regions=table, pixels=pixels, targets=targets)


def _continue(spec: SequenceSpec, example: Example) -> None:
    if example.written is not None:
        spec.written = example.written


class _Extension:
    """Collects the masked copies and pooled rows that the examples need behind the base table."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.masked: list[int] = []
        self.pooled: list[tuple[np.ndarray, int]] = []

    def hide(self, rows: np.ndarray) -> np.ndarray:
        start = len(self.masked)
        self.masked.extend(rows.tolist())
        return np.arange(start, len(self.masked)) + self.base

    def pool(self, members: np.ndarray, box_row: int) -> int:
        """Number of the pooled row among pooled rows; its table row is known only once all masked are."""
        self.pooled.append((members, box_row))
        return len(self.pooled) - 1

    def pooled_row(self, number: int) -> int:
        return self.base + len(self.masked) + number

    def apply(self, table: RegionTable) -> None:
        if self.masked:
            table.masked_rows = torch.tensor(self.masked)
        if self.pooled:
            table.pooled_members = torch.from_numpy(np.concatenate([m for m, _ in self.pooled]))
            owners = np.repeat(np.arange(len(self.pooled)), [len(m) for m, _ in self.pooled])
            table.pooled_owner = torch.from_numpy(owners)
            table.pooled_box_rows = torch.tensor([box for _, box in self.pooled])


_POOLED = -1000  # rows below this stand for pooled row (-1000 - row) until all masked copies are counted


def _seen(example: Example, blanking: bool) -> AnyImage | None:
    """The image that the example reads: where hidden regions are blanked in the pixels, one of its own."""
    image = example.image
    if not blanking or example.masked is None or not isinstance(image, BoxedImage) or not example.masked.any():
        return image
    hidden = np.zeros(1 + len(image.given), dtype=bool)
    numbers = np.arange(len(hidden)) if example.region_numbers is None else example.region_numbers
    hidden[numbers] = example.masked
    return image.hiding(hidden[1:])


def _with_image(example: Example, rows: np.ndarray, extension: _Extension | None) -> tuple[SequenceSpec, np.ndarray]:
    """The example's sequence in table rows, and the base row of each of its regions.

    Without ``extension`` hidden regions keep their rows: the vision encoder does not see what is in them.
    """
    numbers = np.arange(len(rows)) if example.region_numbers is None else example.region_numbers
    base = rows[numbers]
    used = base.copy()
    whole = rows[0]
    if extension is not None and example.masked is not None and example.masked.any():
        used[example.masked] = extension.hide(base[example.masked])
        seen = base[(~example.masked) & (numbers != 0)]
        whole = _POOLED - extension.pool(seen, int(rows[0]))
        used[numbers == 0] = whole
    ties = np.asarray(example.ties)
    per_region = rows.copy()
    per_region[0] = whole
    if example.masked is not None:  # text tied to a hidden region must not see it
        per_region[numbers] = used
    text_rows = int(per_region[int(ties)]) if ties.ndim == 0 else per_region[ties]
    return SequenceSpec(example.token_ids, example.segments, text_rows, used, example.masked), base


def _settle(spec: SequenceSpec, extension_start: int) -> None:
    """Replace pooled placeholders by table rows."""

    def settle(rows: np.ndarray) -> np.ndarray:
        return np.where(rows <= _POOLED, extension_start + (_POOLED - rows), rows)

    spec.region_rows = settle(spec.region_rows)
    text = settle(np.asarray(spec.text_rows))
    spec.text_rows = int(text) if text.ndim == 0 else text


def _targets(
    examples: Sequence[Example], specs: list[SequenceSpec], base_rows: list[np.ndarray | None]
) -> dict[str, Target]:
    """Merge the labels of all examples by target name, places turned into flat positions or sequence numbers."""
    collected: dict[str, list[tuple[Label, np.ndarray, np.ndarray]]] = {}
    start, written = 0, sum(map(len, specs))
    for number, (example, spec, base) in enumerate(zip(examples, specs, base_rows, strict=True)):
        for name, label in example.labels.items():
            values = label.values
            if label.scope == "sequence":
                positions = np.full(len(label.places), number)
            elif label.scope == "feature":
                assert base is not None
                positions = base[label.places]
            elif label.scope == "token":
                positions = start + label.places
            elif label.scope == "written":
                positions = written + label.places
            else:
                assert base is not None
                positions = start + len(spec.token_ids) + label.places
                values = base[label.places] if values is None else values
            assert values is not None
            collected.setdefault(name, []).append((label, positions, values))
        start += len(spec)
        written += len(spec.written)
    return {name: _merge(parts) for name, parts in collected.items()}


def _merge(parts: list[tuple[Label, np.ndarray, np.ndarray]]) -> Target:
    def join(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays))

    first = parts[0][0]
    return Target(
        objective=first.objective,
        positions=join([p.astype(np.int64) for _, p, _ in parts]),
        labels=join([v for _, _, v in parts]),
        extra={k: join([label.extra[k] for label, _, _ in parts]) for k in first.extra},
    )


def regions_table(regions: Sequence[Regions]) -> tuple[list[int], RegionTable]:
    """Put the regions of several images into one base table; returns first rows (and the end) and the table."""
    counts = np.cumsum([0, *(len(r) for r in regions)]).tolist()
    classes = None
    if all(r.classes is not None for r in regions):
        classes = torch.from_numpy(np.concatenate([r.classes for r in regions]))  # type: ignore[misc]
    sizes = np.repeat(np.array([r.size for r in regions], dtype=np.float32), [len(r) for r in regions], axis=0)
    return counts, RegionTable(
        boxes=torch.from_numpy(np.concatenate([r.boxes for r in regions])),
        sizes=torch.from_numpy(sizes),
        features=torch.from_numpy(np.concatenate([r.features for r in regions])),
        classes=classes,
    )
