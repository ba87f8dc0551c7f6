"""What commands share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmbert.cli import common
from mmbert.errors import CheckpointError, UsageError


def test_json_is_one_line_with_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_json({"path": Path("a/b"), "n": np.int64(3), "row": np.array([0.5, 1.0], np.float32), "text": "é"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "é" in out
    assert json.loads(out) == {"path": "a/b", "n": 3, "row": [0.5, 1.0], "text": "é"}


def test_json_refuses_what_it_cannot_say() -> None:
    with pytest.raises(TypeError, match="set"):
        common.print_json({"x": {1}})


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (12_345_678, "12.3 MB"), (7 * 10**12, "7000.0 GB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert common.human_bytes(count) == text


def test_output_path(tmp_path: Path) -> None:
    assert common.output_path(tmp_path / "new.npy") == tmp_path / "new.npy"
    with pytest.raises(UsageError, match="is a folder"):
        common.output_path(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        common.output_path(tmp_path / "none" / "new.npy")


def test_a_device_that_does_not_exist_names_those_that_do() -> None:
    common.check_device("cpu")
    for name in ("cuda:99", "gpu", ""):
        with pytest.raises(UsageError, match="cannot compute") as caught:
            common.check_device(name)
        assert "cpu" in str(caught.value.hint)


def test_find_model(tmp_path: Path) -> None:
    assert common.find_model(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="no such model"):
        common.find_model(str(tmp_path / "none"))
