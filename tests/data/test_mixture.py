"""The mixture: every record once an epoch, within the budget, in an order that the batch number alone decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from colours import save_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, Quarters, picture

from mmbert.data.images import PixelInput
from mmbert.data.mixture import Component, StepDataset
from mmbert.data.packing import Example, Label
from mmbert.data.records import ImageRef, Record
from mmbert.errors import DataError, ImageError


@dataclass
class Numbers:
    """A source whose record i is named i."""

    count: int
    name: str = "numbers"
    languages: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Record(str(index))


@dataclass
class Reading:
    """A task whose example of record i begins with token i and has some random tokens behind it."""

    costs: list[int]
    image: bool = False
    read: list[str] = field(default_factory=list)

    def cost(self, record: Record) -> int:
        return self.costs[int(record.id)]

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        self.read.append(record.id)
        n = int(record.id)
        ids = np.concatenate([[n], rng.integers(1000, 2000, max(0, self.costs[n] - 2))])
        return [Example(ids, labels={"itc": Label("itc", "sequence", np.zeros(1, np.int64), np.array([n]))})]


def component(
    costs: list[int], tokens: int, records: int | None = None, seed: int = 0, name: str = "main", alike: int = 1
) -> Component:
    return Component(name, Numbers(len(costs)), Reading(costs), tokens, records, seed, alike)


def epochs(made: Component, count: int) -> list[list[int]]:
    """Record numbers of the first ``count`` epochs, found by asking for batch after batch until each came ``count``
    times."""
    usable = sum(c > 0 for c in made.task.costs)  # type: ignore[attr-defined]
    taken: list[int] = []
    number = 0
    while len(taken) < usable * count:
        taken += made.batch(number).tolist()
        number += 1
    return [taken[i : i + usable] for i in range(0, len(taken), usable)]


COSTS = st.lists(st.integers(0, 12), min_size=1, max_size=40).filter(any)


@settings(max_examples=100, deadline=None)
@given(
    costs=COSTS,
    tokens=st.integers(1, 40),
    records=st.none() | st.integers(1, 6),
    seed=st.integers(0, 99),
    alike=st.sampled_from([1, 2, 5]),
)
def test_each_epoch_takes_every_usable_record_exactly_once(
    costs: list[int], tokens: int, records: int | None, seed: int, alike: int
) -> None:
    usable = [i for i, c in enumerate(costs) if c]
    made = component(costs, tokens, records, seed, alike=alike)
    for taken in epochs(made, 3):
        assert sorted(taken) == usable
    for batch in (made.batch(n) for n in range(5)):
        assert len(batch) == 1 or sum(costs[i] for i in batch) <= tokens


def test_batches_are_dealt_out_by_length_and_come_in_any_order() -> None:
    costs = np.random.default_rng(0).integers(1, 60, 400).tolist()

    def lengths(alike: int) -> tuple[float, list[float]]:
        made = component(costs, 300, alike=alike)
        batches = [[costs[i] for i in made.batch(n)] for n in range(made.batches_per_epoch)]
        return float(np.mean([np.ptp(b) for b in batches])), [float(np.mean(b)) for b in batches]

    (mixed, _), (near, means) = lengths(1), lengths(10)
    assert near < 0.25 * mixed
    assert means != sorted(means)
    made = component(costs, 300, alike=10)
    first, second = ([made.batch(e * made.batches_per_epoch + n).tolist() for n in range(5)] for e in (0, 1))
    assert first != second


@settings(max_examples=100, deadline=None)
@given(costs=COSTS, tokens=st.integers(1, 40), records=st.none() | st.integers(1, 6))
def test_budgets_are_kept_and_batches_are_as_full_as_they_can_be(
    costs: list[int], tokens: int, records: int | None
) -> None:
    made = component(costs, tokens, records)
    usable = sum(c > 0 for c in costs)
    taken = 0
    for batch, following in pairwise([made.batch(n).tolist() for n in range(60)]):
        spent = sum(costs[i] for i in batch)
        assert len(batch) == 1 or spent <= tokens
        assert records is None or 0 < len(batch) <= records
        taken += len(batch)
        if taken % usable:  # the epoch goes on
            assert spent + costs[following[0]] > tokens or len(batch) == records


@settings(max_examples=50, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_a_batch_is_a_function_of_its_number_alone(data: st.DataObject, seed: int) -> None:
    costs = [1 + i % 5 for i in range(23)]
    straight = component(costs, 12, seed=seed)
    wanted = [straight.batch(n).tolist() for n in range(25)]
    order = data.draw(st.lists(st.integers(0, 24), min_size=1, max_size=30))
    fresh = component(costs, 12, seed=seed)
    for number in order:
        assert fresh.batch(number).tolist() == wanted[number]
        assert straight.batch(number).tolist() == wanted[number]


def test_epochs_seeds_and_names_have_orders_of_their_own() -> None:
    costs = [1] * 30
    one, two, three = epochs(component(costs, 5), 3)
    assert len({tuple(one), tuple(two), tuple(three), tuple(range(30))}) == 4
    assert epochs(component(costs, 5, seed=1), 1)[0] != one
    assert epochs(component(costs, 5, name="other"), 1)[0] != one


def test_orders_are_evenly_spread() -> None:
    """Each record comes first about as often as any other."""
    first = Counter(component([1] * 5, 5, seed=seed).batch(0)[0].item() for seed in range(1000))
    assert min(first.values()) > 140
    assert max(first.values()) < 260


def test_a_source_without_a_usable_record_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 3 records"):
        component([0, 0, 0], 5)


def steps(*, batches: int = 12, seed: int = 0) -> StepDataset:
    parts = [
        component([2 + i % 4 for i in range(11)], 12, seed=seed, name="first"),
        component([2] * 7, 6, records=2, seed=seed, name="second"),
    ]
    return StepDataset(parts, batches=batches, images=None, seed=seed)


def test_a_step_holds_one_batch_of_every_component_in_one_stream() -> None:
    dataset = steps()
    batch = dataset[3]
    first, second = (c.batch(3).tolist() for c in dataset.components)
    starts = batch.token_ids[batch.linguistic_index[batch.starts]].tolist()
    assert starts == first + second
    assert set(batch.targets) == {"first/itc", "second/itc"}
    assert batch.targets["first/itc"].positions.tolist() == list(range(len(first)))
    assert batch.targets["second/itc"].positions.tolist() == [len(first) + i for i in range(len(second))]
    assert batch.targets["second/itc"].labels.tolist() == second


def test_a_step_is_a_function_of_its_number_and_the_seed() -> None:
    wanted = [steps()[n].token_ids.tolist() for n in range(12)]
    dataset = steps()
    for number in (7, 0, 11, 7, 3):
        assert dataset[number].token_ids.tolist() == wanted[number]
    assert steps(seed=1)[7].token_ids.tolist() != wanted[7]
    assert len({tuple(w) for w in wanted}) == 12


def test_two_processes_share_an_epoch_without_overlap() -> None:
    """Process r of two takes numbers r, r + 2, ...: together they read what one process reads."""
    dataset = steps(batches=40)
    alone = [i for n in range(40) for i in dataset.components[0].batch(n).tolist()]
    ranks = [[dataset.components[0].batch(n).tolist() for n in range(rank, 40, 2)] for rank in (0, 1)]
    together = [i for pair in zip(*ranks, strict=True) for part in pair for i in part]
    assert together == alone
    assert max(Counter(alone).values()) - min(Counter(alone).values()) <= 1


@pytest.mark.parametrize("number", [-1, 12])
def test_there_are_no_other_steps(number: int) -> None:
    assert len(steps()) == 12
    with pytest.raises(IndexError):
        steps()[number]


def test_a_step_with_images_looks_each_up_once() -> None:
    shown = picture("p", 3, np.random.default_rng(0))

    class Showing(Reading):
        def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
            return [Example(np.array([1]), image=shown.ref), Example(np.array([2]), image=shown.ref)]

    images = KnownRegions([shown])
    part = Component("a", Numbers(4), Showing([4] * 4), tokens=8)
    batch = StepDataset([part], batches=1, images=images, seed=0)[0]
    assert images.asked == [["p"]]
    assert len(batch.regions) == 3
    assert batch.num_sequences == 4


def test_an_image_that_does_not_open_is_named_with_its_line(tmp_path: Path) -> None:
    files = [save_picture(tmp_path / f"{colour}.jpg", colour) for colour in ("red", "green", "blue")]
    files[1].write_bytes(files[1].read_bytes()[:200])

    class Pictured(Numbers):
        def __getitem__(self, index: int) -> Record:
            return Record(str(index), image=ImageRef(path=str(files[index])), origin=f"metadata.jsonl:{index + 1}")

    class Showing(Reading):
        def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
            return [Example(np.array([1]), image=record.image)]

    part = Component("a", Pictured(3), Showing([4] * 3), tokens=12)
    with pytest.raises(ImageError, match=r"green\.jpg: damaged or cut short") as caught:
        StepDataset([part], batches=1, images=PixelInput(Quarters()), seed=0)[0]
    assert caught.value.where == "metadata.jsonl:2"
