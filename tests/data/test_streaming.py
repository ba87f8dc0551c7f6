"""Stores elsewhere, shard by shard: what is fetched, what stands in which batch, and going on in the middle."""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remote import uploaded, write_store

from mmbert.data.packing import Example
from mmbert.data.records import Record
from mmbert.data.sources import open_data, parse_data
from mmbert.data.sources.stream import StreamedSource
from mmbert.data.streaming import MARKS, StreamedComponent, deal
from mmbert.errors import ConfigError, DataError

SHARD_ROWS, TRAINED = 5, 63


class Words:
    """A task that takes a record's words; those without German are not used."""

    def cost(self, record: Record) -> int:
        return sum(len(text.split()) for text in record.captions.get("de", ()))

    def examples(self, record: Record, rng: np.random.Generator) -> list[Example]:
        raise NotImplementedError


def made(number: int) -> Record:
    said = {"en": (f"number {number}",)} | ({} if number % 10 == 7 else {"de": ("wort " * (1 + number % 6),)})
    return Record(f"r{number}", captions=said, split="train", origin=f"x:{number}")


RECORDS = [made(number) for number in range(TRAINED)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    splits = {"train": RECORDS, "validation": [made(100), made(101)]}
    return write_store(tmp_path / "store", splits, monkeypatch, SHARD_ROWS)


@pytest.fixture
def url(store: Path) -> str:
    return uploaded(store, "stores/tests")


def opened(url: str, **options: object) -> StreamedSource:
    source = open_data({"source": "stream", "root": url, "split": "train", **options})
    assert isinstance(source, StreamedSource)
    return source


def component(source: StreamedSource, tokens: int = 12, **options: int) -> StreamedComponent:
    return StreamedComponent("main", source, Words(), tokens, seed=3, **options)


def batches(part: StreamedComponent, numbers: range) -> list[list[int]]:
    return [part.batch(number).tolist() for number in numbers]


def test_urls_are_streams() -> None:
    assert parse_data("s3://bucket/store") == {"source": "stream", "root": "s3://bucket/store"}
    assert parse_data("s3://bucket/store:train") == {"source": "stream", "root": "s3://bucket/store", "split": "train"}
    assert parse_data("memory://store") == {"source": "stream", "root": "memory://store"}


def test_records_are_those_of_the_store(store: Path, url: str) -> None:
    here, there = open_data(f"{store}:train"), open_data(f"{url}:train")
    assert [there[i] for i in range(len(there))] == [here[i] for i in range(len(here))] == RECORDS
    assert there[-1] == RECORDS[-1]
    assert there.languages == here.languages == ("en", "de")
    assert len(open_data(url)) == TRAINED + 2
    mapped = open_data({"source": "stream", "root": str(store), "split": "train"})
    assert mapped[7] == RECORDS[7]
    assert not list(mapped._cache.folder.iterdir()), "a folder on this machine is not copied"  # type: ignore[attr-defined]
    german = open_data({"source": "stream", "root": url, "languages": ["de"]})
    assert set(german[0].captions) == {"de"}
    assert pickle.loads(pickle.dumps(there))[0] == RECORDS[0]
    with pytest.raises(IndexError):
        there[TRAINED]


def test_what_is_not_there_is_told(url: str, store: Path) -> None:
    for spec, message in (
        ("memory://nowhere", "no such file"),
        ("nothing://store", "no such file system"),
        (f"{url}:tset", "no split 'tset'"),
        ({"source": "stream", "root": url, "languages": ["fr"]}, "no caption is in language 'fr'"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(spec)


def test_a_damaged_shard_is_named_and_asked_for_again(url: str) -> None:
    files, path = fsspec.filesystem("memory"), "/stores/tests/train-00000.arrow"
    whole = files.cat_file(path)
    files.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    source = opened(url)
    with pytest.raises(DataError, match="not as it was written") as found:
        source[0]
    assert str(found.value.where).endswith("train-00000.arrow")
    files.pipe_file(path, whole)
    assert source[0] == RECORDS[0]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 12))
def test_shards_are_dealt_evenly(rows: list[int], lanes: int) -> None:
    dealt = deal(rows, lanes)
    assert sorted(i for lane in dealt for i in lane) == list(range(len(rows)))
    assert len(dealt) == min(lanes, len(rows))
    held = [sum(rows[i] for i in lane) for lane in dealt]
    assert max(held) - min(held) <= max(rows), "one shard makes the difference at most"


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(6, 30))
def test_each_lane_reads_each_usable_record_once_an_epoch(lanes: int, window: int, tokens: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            url = uploaded(write_store(Path(folder) / "store", {"train": RECORDS}, patch, SHARD_ROWS), "stores/drawn")
        part = component(opened(url, lanes=lanes, window=window), tokens)
    usable = {i for i in range(TRAINED) if Words().cost(RECORDS[i])}
    for lane in part.lanes:
        own = {i for s in lane.shards for i in range(s * SHARD_ROWS, min((s + 1) * SHARD_ROWS, TRAINED))} & usable
        orders = []
        number = 0
        for _ in range(2):
            read: list[int] = []
            while len(read) < len(own):
                batch = lane.batch(number).tolist()
                assert len(batch) == 1 or sum(Words().cost(RECORDS[i]) for i in batch) <= tokens
                read += batch
                number += 1
            assert Counter(read) == Counter(own)
            orders.append(read)
        assert orders[0] != orders[1] or len(own) < 4, "each epoch has an order of its own"


def test_batches_are_the_same_for_any_number_of_processes(url: str) -> None:
    alone = batches(component(opened(url, lanes=4)), range(40))
    for processes in (2, 3):
        for process in range(processes):
            part = component(opened(url, lanes=4))
            assert batches(part, range(process, 40, processes)) == alone[process::processes]


def test_a_process_fetches_its_own_shards_only(url: str) -> None:
    fetched = []
    for process in range(2):
        source = opened(url, lanes=4, window=1)
        batches(component(source), range(process, 60, 2))
        fetched.append(set(source._cache.fetched))
    assert fetched[0].isdisjoint(fetched[1])
    assert len(fetched[0] | fetched[1]) == -(-TRAINED // SHARD_ROWS)


def test_shuffling_reaches_across_the_shards_of_a_window(url: str) -> None:
    part = component(opened(url, lanes=1, window=4), tokens=40)
    first = part.batch(0)
    assert len({int(i) // SHARD_ROWS for i in first}) > 1


def test_the_next_window_is_on_its_way(url: str) -> None:
    source = opened(url, lanes=1, window=2)
    component(source).batch(0)
    for _ in range(200):
        if len(source._cache.fetched) == 4:
            break
        time.sleep(0.01)
    assert len(source._cache.fetched) == 4, "this window's two shards and the next one's"


def test_going_on_fetches_only_what_is_read_there(url: str) -> None:
    first = component(opened(url, lanes=2, window=1), tokens=6)
    whole = batches(first, range(60))
    again = component(opened(url, lanes=2, window=1), tokens=6)
    batches(again, range(42))  # the data loader is two batches ahead of the step that is saved
    state = json.loads(json.dumps(again.state()))
    source = opened(url, lanes=2, window=1)
    resumed = component(source, tokens=6)
    resumed.load(state)
    assert batches(resumed, range(40, 44)) == whole[40:44]
    assert len(source._cache.fetched) <= 6, "of thirteen: two lanes with a window that ends, and what comes next"
    without = component(opened(url, lanes=2, window=1), tokens=6)
    assert batches(without, range(40, 44)) == whole[40:44], "without marks it takes longer, and is the same"


def test_marks_of_several_processes_go_together(url: str) -> None:
    states = []
    for process in range(2):
        part = component(opened(url, lanes=2))
        batches(part, range(process, 40, 2))
        states.append(part.state())
    source = opened(url, lanes=2)
    alone = component(source)
    for state in states:
        alone.load(state)
    assert all(max(lane.marks) == 20 for lane in alone.lanes)
    assert batches(alone, range(36, 44)) == batches(component(opened(url, lanes=2)), range(36, 44))


def test_marks_do_not_grow_without_end(url: str) -> None:
    part = component(opened(url, lanes=1), tokens=6)
    part.batch(MARKS + 100)
    assert len(part.lanes[0].marks) <= MARKS + 2
    assert 0 in part.lanes[0].marks


def test_the_disk_that_a_cache_takes_is_bounded(url: str, tmp_path: Path) -> None:
    size = opened(url).shards[0].bytes
    source = opened(url, cache=tmp_path / "cache", cache_gb=3.5 * size / 1e9)
    for index in range(0, TRAINED, SHARD_ROWS):
        assert source[index] == RECORDS[index]
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 3
    assert source[0] == RECORDS[0], "one that had to go is fetched again"
    kept = opened(url, cache=tmp_path / "cache")
    assert kept[0] == RECORDS[0]
    assert kept._cache.fetched == [], "what lies in the folder is not fetched"


def test_epochs_of_a_stream_are_not_counted(url: str) -> None:
    with pytest.raises(ConfigError, match="give steps instead of epochs"):
        _ = component(opened(url)).batches_per_epoch


def test_a_lane_without_a_usable_record_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    english = [Record(f"e{i}", captions={"en": ("x",)}) for i in range(9)]
    store = write_store(tmp_path / "store", {"train": english}, monkeypatch)
    with pytest.raises(DataError, match="none of the records of 1 shards can be used"):
        component(opened(uploaded(store, "stores/english"))).batch(0)
