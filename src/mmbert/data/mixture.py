"""Mixture: which records stand in which batch.

A batch is a pure function of (seed, batch number), so that training resumes in the middle of an epoch by asking for
the next number, with nothing stored and nothing replayed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from mmbert.data.images import ImageInput, at_record
from mmbert.data.packing import Example, collate
from mmbert.data.records import Record, Source
from mmbert.errors import DataError, ImageError
from mmbert.model.packed import PackedBatch


class ExampleMaker(Protocol):
    """The part of a task that the mixture needs."""

    def cost(self, record: Record) -> int:
        """Upper bound of the positions that ``examples`` makes of a record; 0 leaves the record out."""
        ...

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        """The record as model sequences."""
        ...


class MixturePart(Protocol):
    """What a batch is made from: a :class:`Component`, or one that is streamed."""

    name: str
    task: ExampleMaker

    @property
    def source(self) -> Source:
        """Its records."""
        ...

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch."""
        ...

    def batch(self, number: int) -> np.ndarray:
        """Record numbers of its ``number``-th batch since the start of training."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps so that batches are found quickly."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave, on this process or another."""
        ...


@dataclass
class Component:
    """One part of a mixture: a source read by a task, with its share of each step.

    Attributes:
        name: prefix of its targets (``name/objective``) and of its losses in the log.
        source: records.
        task: makes examples.
        tokens: positions per batch.
        max_records: records per batch, at most.
        alike: records for so many batches are drawn, and dealt out by cost, so that those of a batch are about as long;
            1 leaves them as drawn. Short groups of equal length are what makes attention slow on a CPU.
    """

    name: str
    source: Source
    task: ExampleMaker
    tokens: int
    max_records: int | None = None
    seed: int = 0
    alike: int = 1
    _usable: np.ndarray = field(init=False, repr=False)
    _costs: np.ndarray = field(init=False, repr=False)
    _epoch_ends: list[int] = field(default_factory=list, init=False, repr=False)
    _plans: dict[int, list[np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        costs = np.array([self.task.cost(self.source[i]) for i in range(len(self.source))], dtype=np.int64)
        self._usable = np.flatnonzero(costs)
        self._costs = costs
        if not len(self._usable):
            raise DataError(
                f"none of the {len(costs)} records can be used here",
                where=self.name,
                hint="see what the folder holds with `mmbert data check`",
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch (later ones may differ by the cut)."""
        return len(self._plan(0))

    def batch(self, number: int) -> np.ndarray:
        """Record numbers of the component's ``number``-th batch since the start of training."""
        while not self._epoch_ends or self._epoch_ends[-1] <= number:
            before = self._epoch_ends[-1] if self._epoch_ends else 0
            self._epoch_ends.append(before + len(self._plan(len(self._epoch_ends))))
        epoch = int(np.searchsorted(self._epoch_ends, number, side="right"))
        start = self._epoch_ends[epoch - 1] if epoch else 0
        return self._plan(epoch)[number - start]

    def state(self) -> dict[str, Any]:
        """Nothing: plans are made again."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """All batches of one epoch: each usable record once, in an order of that epoch, cut by the token budget."""
        if epoch not in self._plans:
            rng = np.random.default_rng([self.seed, number_of(self.name), epoch])
            order = rng.permutation(self._usable)
            if self.alike > 1:
                pools = _cut(order, self._costs[order], self.alike * self.tokens, None)
                order = np.concatenate([pool[np.argsort(self._costs[pool], kind="stable")] for pool in pools])
            plan = _cut(order, self._costs[order], self.tokens, self.max_records)
            if self.alike > 1:
                plan = [plan[i] for i in rng.permutation(len(plan))]
            self._plans = {e: p for e, p in self._plans.items() if e >= epoch - 1}
            self._plans[epoch] = plan
        return self._plans[epoch]


def _cut(order: np.ndarray, costs: np.ndarray, budget: int, max_records: int | None) -> list[np.ndarray]:
    """Cut ``order`` into runs whose costs stay within ``budget`` (a single costlier record stands alone)."""
    ends, total, count = [], 0, 0
    for i, cost in enumerate(costs.tolist()):
        if count and (total + cost > budget or (max_records is not None and count >= max_records)):
            ends.append(i)
            total = count = 0
        total += cost
        count += 1
    return np.split(order, ends)


def number_of(name: str) -> int:
    """A number that stands for a component's name in seeds."""
    return int.from_bytes(name.encode()[:6].ljust(6, b"\0"), "little") + len(name)


class StepDataset(Dataset[PackedBatch]):
    """Batch numbers to packed batches: each holds one batch of every component, in one stream.

    With several processes or with accumulation the numbers are dealt out in turn, so a run that goes on with another
    number of processes neither loses nor repeats a record.

    Args:
        components: the mixture.
        batches: how many there are: steps x processes x accumulation.
        images: pixels or features of images.
        seed: decides everything.
        shift: added to the numbers asked for. A run that goes on with another number of processes counts its batches
            as if it had always had as many; what is really used up says the checkpoint.
    """

    def __init__(
        self,
        components: Sequence[MixturePart],
        *,
        batches: int,
        images: ImageInput | None,
        seed: int,
        shift: int = 0,
    ) -> None:
        self.components = list(components)
        self.batches = batches
        self.images = images
        self.seed = seed
        self.shift = shift

    def __len__(self) -> int:
        return self.batches

    def write_state(self, folder: Path, process: int) -> None:
        """Write what components want to be remembered into a checkpoint, one file for each process."""
        content = {component.name: state for component in self.components if (state := component.state())}
        if content:
            (folder / f"mixture-{process}.json").write_text(json.dumps(content), "utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Take up what all processes have written."""
        for path in sorted(checkpoint.glob("mixture-*.json")):
            content = json.loads(path.read_text("utf-8"))
            for component in self.components:
                component.load(content.get(component.name, {}))

    def __getitem__(self, number: int) -> PackedBatch:
        if not 0 <= number < self.batches:
            raise IndexError(number)
        number += self.shift
        rng = np.random.default_rng([self.seed, number])
        examples: list[Example] = []
        records: list[Record] = []
        for component in self.components:
            for index in component.batch(number).tolist():
                records.append(component.source[index])
                for example in component.task.examples(records[-1], rng):
                    example.labels = {f"{component.name}/{name}": label for name, label in example.labels.items()}
                    examples.append(example)
        try:
            return collate(examples, self.images, rng)
        except ImageError as error:
            for record in records:  # whoever opened the image knew its file only, not the line that names it
                if record.image is not None and error.where in (record.image.path, record.image.key):
                    raise at_record(error, record.image.path, record.origin) from error
            raise
