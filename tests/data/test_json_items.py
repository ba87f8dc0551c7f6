"""Reading large JSON item by item: what the standard reader reads, in little memory, and faults in their place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmbert.data import json_items as module
from mmbert.data.json_items import json_items
from mmbert.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def expected(value: Any) -> list[tuple[str, int, Any]]:
    """What the items are, from a file that was read as a whole."""
    if isinstance(value, list):
        return [("", number, item) for number, item in enumerate(value, 1)]
    found: list[tuple[str, int, Any]] = []
    for key, inner in value.items():
        found += [(key, n, item) for n, item in enumerate(inner, 1)] if isinstance(inner, list) else [(key, 0, inner)]
    return found


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.lists(VALUES, max_size=6) | st.dictionaries(st.text(max_size=4), VALUES, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
@example(value={"": 0.5, "a": [1e5, -2.0]}, chunk=3, indent=None, ascii_only=True)
def test_items_are_those_of_the_whole_file_wherever_chunks_end(
    value: Any, chunk: int, indent: int | None, ascii_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert list(json_items(path)) == expected(value)


def test_a_packed_file_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b'{"a": [1, {"b": "\xc3\xa9"}]}'))
    assert list(json_items(path)) == [("a", 1, 1), ("a", 2, {"b": "é"})]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        list(json_items(path))


def test_the_file_is_never_held_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    item = json.dumps({"answers": [{"answer": "yes", "n": n} for n in range(50)]})
    path.write_text('{"annotations": [' + ",".join([item] * 200) + "]}")
    monkeypatch.setattr(module, "CHUNK", 1 << 13)
    tracemalloc.start()
    count = sum(1 for _ in json_items(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200
    assert peak < path.stat().st_size / 3  # as objects it would be some eight times its size


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ('{"a": [{"b": 1}, {"b": 2', "a[2]", "cut short"),
        ('{"a": [1, 2] ', "", "cut short"),
        ('[{"b": 1} {"b": 2}]', "[1]", "',' or ']' expected"),
        ('[1, {"b": NaN}]', "[2]", "NaN is not a number"),
        ('{"a": [1]} x', "", "more text behind the end"),
        ("[" * 100_000, "[1]", "nested too deeply"),
        ("[1, 2,]", "[3]", "expecting value"),
        ('{"a": [1],}', "a[1]", "cut short, or"),
        ("[1, " + "9" * 5000 + "]", "[2]", "digits"),
        ('{1: "a"}', "", "a key is a number"),
        ('{"a" 1}', "", "':' expected"),
        ("", "", "cut short"),
        ("words", "", "expected, not 'w'"),
    ],
)
def test_what_is_not_json_is_refused_in_its_place(text: str, place: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not valid JSON") as caught:
        list(json_items(path))
    assert what in caught.value.message
    assert (caught.value.where or "").startswith(f"{path}:{place}" if place else str(path))


def test_other_faults_of_a_file_are_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match="cannot be read"):
        list(json_items(path))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(json_items(path))
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "MAX_ITEM", 100)
    path.write_text('["' + "a" * 1000)
    with pytest.raises(DataError, match="more than 100 characters"):
        list(json_items(path))
