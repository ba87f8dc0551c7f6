"""`mmbert embed`: reading inputs, the order of rows, the formats written."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mmbert.cli.embed
from mmbert.cli.embed import find_images, read_lines
from mmbert.cli.main import run
from mmbert.errors import DataError
from mmbert.model.int8 import largest_weight


class Encoder:
    """Stands in for MMBert: a unit vector that depends on the input alone."""

    fingerprint = "abc123"

    def encode_text(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        return np.stack([vector_of(text.encode()) for text in texts])

    def encode_images(self, images: Sequence[Path], *, progress: bool = False) -> np.ndarray:
        return np.stack([vector_of(Path(image).read_bytes()) for image in images])


def vector_of(data: bytes) -> np.ndarray:
    numbers = np.frombuffer(hashlib.sha256(data).digest()[:8], np.uint8).astype(np.float32) + 1
    return numbers / np.linalg.norm(numbers)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmbert.cli.embed, "load_model", lambda name, device, int8: Encoder())


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_a_real_model_gives_unit_vectors_of_its_own_size(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmbert import MMBert

    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    (tmp_path / "t.txt").write_text("ein Elefant\nun éléphant im Schnee\n", encoding="utf-8")
    for number, what in enumerate([["--text", str(tmp_path / "t.txt")], [str(tmp_path / "red.png")]]):
        out = tmp_path / f"{number}.npy"
        assert run(["embed", *what, "--model", str(model_folder), "--device", "cpu", "--out", str(out)]) == 0
        np.testing.assert_allclose(np.linalg.norm(np.load(out), axis=1), 1, atol=1e-5)
        assert np.load(out).shape == (2 - number, 8)
    model = MMBert.from_pretrained(model_folder, device="cpu")
    expected = model.encode_text(["ein Elefant", "un éléphant im Schnee"])
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), expected, atol=1e-6)
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not largest_weight(), reason="this PyTorch has no products in 8 bits")
@pytest.mark.parametrize("faster", [True, False])
def test_8_bits_where_they_are_faster(
    faster: bool,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmbert import MMBert

    monkeypatch.setattr("mmbert.model.int8.int8_is_faster", lambda: faster)
    (tmp_path / "t.txt").write_text("ein Elefant\n", encoding="utf-8")
    out = tmp_path / "v.npy"
    given = ["--text", str(tmp_path / "t.txt"), "--model", str(model_folder), "--device", "cpu", "--out", str(out)]
    assert run(["embed", "--int8", *given]) == 0
    wanted = MMBert.from_pretrained(model_folder, device="cpu", int8=faster).encode_text(["ein Elefant"])
    np.testing.assert_allclose(np.load(out), wanted, atol=1e-6)
    assert ("--int8 is left out" in capsys.readouterr().err) is not faster


def test_a_broken_image_is_named(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    assert run(["embed", str(bad), "--model", str(model_folder)]) == 2
    assert "bad.png" in capsys.readouterr().err


@pytest.mark.usefixtures("encoder")
def test_rows_of_npy_follow_the_lines(tmp_path: Path) -> None:
    source = tmp_path / "captions.txt"
    source.write_text("ein Elefant\nدو سگ در برف\nun éléphant\n", encoding="utf-8")
    assert run(["embed", "--text", str(source), "--out", str(tmp_path / "v.npy")]) == 0
    vectors = np.load(tmp_path / "v.npy")
    expected = [vector_of(line.encode()) for line in ("ein Elefant", "دو سگ در برف", "un éléphant")]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack(expected))


@pytest.mark.usefixtures("encoder")
def test_standard_input_to_json_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give_stdin(monkeypatch, b"ein Elefant\r\nzwei\r\n")
    assert run(["embed", "--text", "-"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["source"] for item in items] == ["ein Elefant", "zwei"]
    np.testing.assert_allclose(items[1]["vector"], vector_of(b"zwei"), atol=1e-6)


@pytest.mark.usefixtures("encoder")
def test_images_in_the_order_given_and_folders_sorted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    names = ["z.png", "folder/b.jpg", "folder/a.WEBP", "folder/deep/c.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    out = tmp_path / "v.npy"
    assert run(["embed", str(tmp_path / "z.png"), str(tmp_path / "folder"), "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {"model": "starter", "fingerprint": "abc123", "count": 4, "size": 8, "out": str(out)}
    order = ["z.png", "folder/a.WEBP", "folder/b.jpg", "folder/deep/c.png"]
    expected = np.stack([vector_of((tmp_path / name).read_bytes()) for name in order])
    np.testing.assert_array_equal(np.load(out), expected)


@pytest.mark.usefixtures("encoder")
def test_json_without_a_file_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give_stdin(monkeypatch, b"one\ntwo\n")
    assert run(["embed", "--text", "-", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [item["source"] for item in answer["items"]] == ["one", "two"]
    assert answer["size"] == 8


@pytest.mark.parametrize(
    ("data", "message", "where"),
    [
        (b"", "no text", ""),
        (b"one\n\nthree\n", "empty line", ":2"),
        (b"one\n  \t\n", "empty line", ":2"),
        (b"one\nz\xffwei\n", "not UTF-8", ":2"),
    ],
)
def test_unusable_text_says_which_line(tmp_path: Path, data: bytes, message: str, where: str) -> None:
    source = tmp_path / "captions.txt"
    source.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_lines(str(source))
    assert caught.value.where == f"{source}{where}"


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    source = tmp_path / "captions.txt"
    source.write_bytes("\ufeffone\u2028still one\ntwo\r\nthree\x0b".encode())
    assert read_lines(str(source)) == ["one\u2028still one", "two", "three\x0b"]


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_lines(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="no such file"):
        find_images([tmp_path / "none.png"])
    with pytest.raises(DataError, match="no images"):
        find_images([tmp_path])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either"),
        (["a.png", "--text", "b.txt"], "give either"),
        (["--text", "-", "--out", "vectors.csv"], "format"),
        (["--text", "-", "--out", "no/such/folder/v.npy"], "no folder"),
    ],
)
def test_wrong_usage(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["embed", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("encoder")
def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    give_stdin(monkeypatch, b"one\n")
    out = tmp_path / "v.npy"
    out.write_bytes(b"what was there")
    assert run(["embed", "--text", "-", "--out", str(out)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]
    assert out.read_bytes() == b"what was there"
