"""Pickles are data: what is plain comes out, what would run is refused and has not run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmbert.data.safe_pickle import read_pickle
from mmbert.errors import DataError

PLAIN = [{"a": (1, 2.5, None, True), "é": b"\x00\xff", "set": {1, 2}, "big": 1 << 80, "in": [[], {}]}, "naïve café"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_back_from_every_protocol(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert read_pickle(path) == PLAIN


def test_text_of_python_2_is_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(b"\x80\x02}U\x04nameU\x04caf\xe9s.")  # {str 'name': str 'caf\xe9'} as Python 2 writes it
    assert read_pickle(path) == {"name": "caf\xe9"}
    path.write_bytes(b"(dp0\nS'sent'\np1\nV\\u72d7\np2\ns.")  # protocol 0, with a unicode string
    assert read_pickle(path) == {"sent": "狗"}


class _Runs:
    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call[0], self._call[1:]


@pytest.mark.parametrize(
    "call",
    [
        (os.mkdir, "made"),
        (eval, "__import__('os').mkdir('made')"),
        (exec, "1"),
        (getattr, "", "join"),
        (open, "made", "w"),
    ],
)
def test_nothing_is_ever_called(call: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps([_Runs(*call)]))
    with pytest.raises(DataError, match="only plain data are read"):
        read_pickle(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.p"]


def test_damaged_or_foreign_files_are_data_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    with pytest.raises(DataError, match="cannot be read"):
        read_pickle(path)
    whole = pickle.dumps(PLAIN, protocol=2)
    persistent = b"\x80\x02U\x01aQ."
    changes_a_helper = b"c_codecs\nencode\n}U\x01aK\x01sb."  # sets an attribute of what find_class gave
    other_encoding = b"c_codecs\nencode\n(VA\nVzip\ntR."
    for bad in (b"", b"words", whole[:20], whole[:-1], persistent, changes_a_helper, other_encoding):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="not a pickle of plain data"):
            read_pickle(path)
    numpy = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n."
    path.write_bytes(numpy)
    with pytest.raises(DataError, match=r"numpy\.core\.multiarray\._reconstruct"):
        read_pickle(path)
