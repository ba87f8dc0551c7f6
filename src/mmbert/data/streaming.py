"""Streamed mixture: which records stand in which batch, where only some shards of a corpus are at hand.

In: a streamed source and a task. Out: numbers of records, batch by batch, as from the mixture's ``Component``.

The shards are dealt to lanes, evenly by rows and once and for all; batch ``n`` comes from lane ``n`` modulo their
number. A lane reads its shards in an order that each epoch draws anew, some at a time (the window): their records are
shuffled together and cut by the token budget. So a batch is a function of the seed, its number and the corpus alone,
whoever asks for it; with as many processes as lanes, or a divisor of that, each process reads its own shards only.
What has to be known is how far a lane is at a batch: marks say it, checkpoints keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mmbert.data.mixture import ExampleMaker, number_of
from mmbert.data.sources.stream import StreamedSource
from mmbert.errors import ConfigError, DataError

MARKS = 256
"""Marks that a lane remembers: more than the batches that are made ahead of the step."""


class Mark(NamedTuple):
    """How far a lane is: its batches before this place, and the place.

    Attributes:
        batches: of the lane, before.
        epoch, window: of the lane.
        record: of the window's shuffled records, the next.
    """

    batches: int = 0
    epoch: int = 0
    window: int = 0
    record: int = 0


@dataclass
class Lane:
    """Some shards of a source, read again and again.

    Args:
        source: of the records.
        shards: places in ``source.shards``.
        task: knows what a record costs.
        seed: of the orders.
        size: shards of a window.
        tokens, max_records: of a batch, at most (a single costlier record stands alone).
    """

    source: StreamedSource
    shards: list[int]
    task: ExampleMaker
    seed: tuple[int, ...]
    size: int
    tokens: int
    max_records: int | None
    marks: dict[int, Mark] = field(default_factory=lambda: {0: Mark()})
    _opened: tuple[int, int] | None = None
    _records: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def batch(self, number: int) -> np.ndarray:
        """Record numbers of the lane's ``number``-th batch."""
        mark = self.marks[max(known for known in self.marks if known <= number)]
        while True:
            found, after = self._next(mark)
            self.marks[after.batches] = after
            if mark.batches == number:
                break
            mark = after
        for old in sorted(self.marks)[1:-MARKS]:  # the first stays: from there everything can be found again
            del self.marks[old]
        return found

    def _next(self, mark: Mark) -> tuple[np.ndarray, Mark]:
        """The batch after a mark; one may begin in one window and end in the next."""
        found: list[int] = []
        total, start = 0, mark
        while True:
            records = self._window(mark.epoch, mark.window)
            for place in range(mark.record, len(records)):
                number = int(records[place])
                record = self.source[number]
                cost = 0 if record.split in self.source.left_out else self.task.cost(record)
                full = total + cost > self.tokens or (self.max_records is not None and len(found) >= self.max_records)
                if found and cost and full:
                    return np.array(found, dtype=np.int64), mark._replace(batches=start.batches + 1, record=place)
                if cost:
                    found.append(number)
                    total += cost
            mark = self._after(mark)
            if mark.epoch > start.epoch + 1 and not found:
                raise DataError(
                    f"none of the records of {len(self.shards)} shards can be used here",
                    where=self.source.name,
                    hint="see what the store holds with `mmbert data show`",
                )
            if mark.epoch > start.epoch and found:  # an epoch's last batch may be small
                return np.array(found, dtype=np.int64), mark._replace(batches=start.batches + 1)

    def _after(self, mark: Mark) -> Mark:
        """The start of the next window."""
        last = (mark.window + 1) * self.size >= len(self.shards)
        return mark._replace(epoch=mark.epoch + last, window=0 if last else mark.window + 1, record=0)

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """[n] numbers of the window's records in their order; the next window's shards are on their way then."""
        if self._opened != (epoch, window):
            shards = [self.source.shards[i] for i in self._shards(epoch, window)]
            rows = np.concatenate([np.arange(s.start, s.start + s.rows, dtype=np.int64) for s in shards])
            self._records = np.random.default_rng([*self.seed, epoch, window, 1]).permutation(rows)
            self._opened = epoch, window
            following = self._after(Mark(0, epoch, window))
            self.source.prefetch([*self._shards(epoch, window), *self._shards(following.epoch, following.window)])
        return self._records

    def _shards(self, epoch: int, window: int) -> list[int]:
        order = np.random.default_rng([*self.seed, epoch]).permutation(self.shards)
        return [int(i) for i in order[window * self.size : (window + 1) * self.size]]


class StreamedComponent:
    """One part of a mixture whose records are streamed; see :class:`~mmbert.data.mixture.Component`.

    Args:
        name: prefix of its targets and of its losses in the log.
        source: records.
        task: makes examples.
        tokens: positions per batch.
        max_records: records per batch, at most.
        seed: of the orders.
    """

    def __init__(
        self,
        name: str,
        source: StreamedSource,
        task: ExampleMaker,
        tokens: int,
        max_records: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name, self.source, self.task = name, source, task
        options = source.options
        dealt = deal([shard.rows for shard in source.shards], options.lanes)
        size = min(options.window, max(map(len, dealt)))
        self.lanes = [
            Lane(source, shards, task, (seed, number_of(name), lane), size, tokens, max_records)
            for lane, shards in enumerate(dealt)
        ]

    @property
    def batches_per_epoch(self) -> int:
        """Unknown: a stream is not read to its end beforehand.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the batches of a stream are not counted beforehand",
            where=f"components.{self.name}",
            hint="give steps instead of epochs",
        )

    def batch(self, number: int) -> np.ndarray:
        """Record numbers of the component's ``number``-th batch since the start of training."""
        lane, place = number % len(self.lanes), number // len(self.lanes)
        return self.lanes[lane].batch(place)

    def state(self) -> dict[str, list[list[int]]]:
        """Marks of the lanes that were read here, for a checkpoint."""
        return {
            str(i): [list(mark) for mark in lane.marks.values()] for i, lane in enumerate(self.lanes) if lane._opened
        }

    def load(self, state: Mapping[str, list[list[int]]]) -> None:
        """Take up marks; those of several processes one after the other."""
        for lane, marks in state.items():
            self.lanes[int(lane)].marks.update({mark[0]: Mark(*mark) for mark in marks})


def deal(rows: list[int], lanes: int) -> list[list[int]]:
    """Deal shards (given by their rows) evenly to lanes: the largest first, each to the lane with the fewest rows."""
    lanes = min(lanes, len(rows))
    found: list[list[int]] = [[] for _ in range(lanes)]
    held = [0] * lanes
    for shard in sorted(range(len(rows)), key=lambda i: (-rows[i], i)):
        lane = held.index(min(held))
        found[lane].append(shard)
        held[lane] += rows[shard]
    return [sorted(shards) for shards in found]
