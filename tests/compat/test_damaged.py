"""Damaged, foreign and hostile files: each is a typed error that names the file, and nothing is run or left behind."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmbert.cli.main import run
from mmbert.compat.convert import convert
from mmbert.errors import CheckpointError

# Making the files is what warns: TorchScript is deprecated, and a payload leaves a file open.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "ResourceWarning")]

State = dict[str, Tensor]
WORD_TABLE = "vlbert.word_embeddings.weight"
POOLER = "vlbert.pooler.dense.weight"


class Payload:
    """Runs ``function(*arguments)`` when unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def sentinel(folder: Path) -> Path:
    """The file that a payload makes if anything runs it."""
    return folder / "sentinel"


def payloads(folder: Path) -> dict[str, Payload]:
    made = sentinel(folder)
    code = f"open({str(made)!r}, 'w')"
    return {
        "shell": Payload(os.system, f"touch {made}"),
        "open": Payload(builtins.open, str(made), "w"),
        "exec": Payload(builtins.exec, code),
        "eval through getattr": Payload(builtins.getattr, Payload(builtins.__import__, "builtins"), "eval"),
        "touch": Payload(Path.touch, made),
    }


def zipped(state: State) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": state}, stream)
    return stream.getvalue()


def legacy(state: State) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": state}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def archive(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, data in content.items():
            made.writestr(name, data)
    return stream.getvalue()


def changed(content: dict[str, bytes], end: str, change: Callable[[bytes], bytes | None]) -> bytes:
    """The archive with the entry whose name ends so changed (None: left out)."""
    new = {name: change(data) if name.endswith(end) else data for name, data in content.items()}
    return archive({name: data for name, data in new.items() if data is not None})


def largest(content: dict[str, bytes]) -> str:
    return max(content, key=lambda name: len(content[name]))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def tar(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        entry = tarfile.TarInfo("storages")
        entry.size = len(data)
        made.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


def claims_more(state: State) -> bytes:
    """A storage cut short, its length in the zip right: the pickle still asks for the whole."""
    content = entries(zipped(state))
    name = largest(content)
    return archive({n: d[: len(d) // 2] if n == name else d for n, d in content.items()})


def flipped_weights(state: State) -> bytes:
    """One byte of the largest tensor changed, as a bad disk or a broken download would."""
    data = zipped(state)
    content = entries(data)
    start = data.index(content[largest(content)])
    return flipped(data, start + 1000)


def without(state: State, part: str) -> State:
    return {key: value for key, value in state.items() if part not in key}


HARMLESS: dict[str, Callable[[State], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda _: b"P",
    "random bytes": lambda _: bytes(range(256)) * 40,
    "a text": lambda _: b"model: vl-bert\n",
    "a line": lambda _: b"ok\n",
    "a web page": lambda _: b"<!DOCTYPE html><html><body>404</body></html>",
    "an image": lambda _: b"\x89PNG\r\n\x1a\n" + bytes(500),
    "a tar": lambda _: tar(b"x" * 100),
    "TorchScript": lambda _: scripted(),
    "zip cut at 1 %": lambda s: zipped(s)[: len(zipped(s)) // 100],
    "zip cut in the middle": lambda s: zipped(s)[: len(zipped(s)) // 2],
    "zip without its last 100 bytes": lambda s: zipped(s)[:-100],
    "zip without its last byte": lambda s: zipped(s)[:-1],
    "zip without its start": lambda s: zipped(s)[5000:],
    "zip with a weight changed": flipped_weights,
    "zip with a broken pickle": lambda s: changed(entries(zipped(s)), "data.pkl", lambda d: d[: len(d) // 2]),
    "zip without its pickle": lambda s: changed(entries(zipped(s)), "data.pkl", lambda _: None),
    "zip without a tensor": lambda s: changed(entries(zipped(s)), "/data/3", lambda _: None),
    "zip with a tensor cut short": claims_more,
    "compressed zip": lambda s: archive(entries(zipped(s)), zipfile.ZIP_DEFLATED),
    "zip of texts": lambda _: archive({"a.txt": b"a", "b.txt": b"b"}),
    "zip slip": lambda s: archive(entries(zipped(s)) | {"../../escaped": b"x"}),
    "zip slip, absolute": lambda s: archive(entries(zipped(s)) | {"/tmp/escaped": b"x"}),
    "zip slip, Windows": lambda s: archive(entries(zipped(s)) | {"archive\\..\\..\\escaped": b"x"}),
    "pickle stream cut at its head": lambda s: legacy(s)[:20],
    "pickle stream cut in the keys": lambda s: legacy(s)[:700],
    "pickle stream cut in the weights": lambda s: legacy(s)[: len(legacy(s)) // 2],
    "pickle stream without its last byte": lambda s: legacy(s)[:-1],
    "pickle stream with a wrong magic": lambda s: flipped(legacy(s), 5),
    "no state dict": lambda _: saved([1, 2, 3]),
    "empty state dict": lambda _: saved({"state_dict": {}}),
    "only optimiser state": lambda _: saved({"optimizer": {"lr": 1.0}}),
    "numbers in place of tensors": lambda s: saved({"state_dict": s | {POOLER: 3.5}}),
    "keys that are no text": lambda s: saved({"state_dict": s | {7: torch.ones(2)}}),
    "missing keys": lambda s: zipped(without(s, "layer.1.")),
    "a missing layer in between": lambda s: zipped(without(s, "layer.0.")),
    "keys of another network": lambda s: zipped({f"bert.{k}": v for k, v in s.items()}),
    "a wrong shape": lambda s: zipped(s | {POOLER: torch.zeros(16, 15)}),
    "a transposed matrix": lambda s: zipped(
        s | {(k := "vlbert.encoder.layer.0.output.dense.weight"): s[k].T.contiguous()}
    ),
    "a vector in place of a matrix": lambda s: zipped(s | {POOLER: torch.zeros(16)}),
    "queries of another width": lambda s: zipped(
        s | {"vlbert.encoder.layer.0.attention.self.query.weight": torch.zeros(8, 16)}
    ),
    "two rows in place of one": lambda s: zipped(s | {"vlbert.end_embedding.weight": torch.zeros(2, 16)}),
    "whole numbers in place of weights": lambda s: zipped(s | {POOLER: torch.ones(16, 16, dtype=torch.int64)}),
    "complex weights": lambda s: zipped(s | {POOLER: torch.ones(16, 16, dtype=torch.complex64)}),
    "a sparse tensor": lambda s: zipped(s | {POOLER: torch.eye(16).to_sparse()}),
    "one number repeated for ever": lambda s: zipped(s | {POOLER: torch.zeros(1).expand(10**9, 10**9)}),
    "two names that disagree": lambda s: zipped(s | {"vlbert.mlm_head.predictions.decoder.weight": s[WORD_TABLE] * 2}),
}
"""Files that are no checkpoint, or no longer one, or of another network."""


def check_refused(path: Path, config: Path) -> CheckpointError:
    """The conversion fails with a typed error that names the file, and leaves the folder as it was."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert(path, path.parent / "out", config=config)
    assert str(path) in str(caught.value)
    assert sorted(path.parent.iterdir()) == before
    return caught.value


@pytest.mark.parametrize("kind", HARMLESS)
def test_damaged_files_are_refused(state: State, config: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(HARMLESS[kind](state))
    check_refused(path, config)
    assert not Path("/tmp/escaped").exists()


FOREIGN = ["empty", "random bytes", "a text", "a line", "a web page", "an image", "a tar"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_pytorch_did_not_write_is_no_checkpoint(config: Path, tmp_path: Path, kind: str) -> None:
    """And nothing is said about code that it could run."""
    path = tmp_path / "ok.txt"
    path.write_bytes(HARMLESS[kind]({}))
    assert "not a checkpoint" in check_refused(path, config).message


@pytest.mark.parametrize("kind", ["zip cut in the middle", "no state dict", "missing keys", "compressed zip"])
def test_the_command_says_so_in_one_line(
    state: State, config: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(HARMLESS[kind](state))
    assert run(["convert", str(path), "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("mmbert: error: ")
    assert len(err) <= 2
    assert not (tmp_path / "out").exists()


def with_pickle(state: State, content: Any) -> bytes:
    """A PyTorch archive with another pickle in it."""
    return changed(entries(zipped(state)), "data.pkl", lambda _: pickle.dumps(content, protocol=2))


PLACES: dict[str, Callable[[State, Payload], bytes]] = {
    "zip, in its pickle": lambda s, p: with_pickle(s, {"state_dict": p}),
    "zip, beside the weights": lambda s, p: saved({"state_dict": s, "optimizer": p}),
    "zip, among the weights": lambda s, p: saved({"state_dict": s | {POOLER: p}}),
    "PyTorch 1.x, beside the weights": lambda s, p: saved(
        {"state_dict": s, "validation_monitor": p}, _use_new_zipfile_serialization=False
    ),
    "PyTorch 1.x, among the weights": lambda s, p: saved(
        {"state_dict": s | {POOLER: p}}, _use_new_zipfile_serialization=False
    ),
    "bare pickle": lambda s, p: pickle.dumps({"state_dict": p}),
    "bare pickle, old protocol": lambda s, p: pickle.dumps(p, protocol=0),
    "before a good file": lambda s, p: pickle.dumps(p, protocol=2) + legacy(s),
}


@pytest.mark.parametrize("kind", sorted(payloads(Path())))
@pytest.mark.parametrize("place", PLACES)
def test_nothing_in_a_file_is_run(state: State, config: Path, tmp_path: Path, place: str, kind: str) -> None:
    payload = payloads(tmp_path)[kind]
    path = tmp_path / "x.model"
    path.write_bytes(PLACES[place](state, payload))
    check_refused(path, config)
    assert not sentinel(tmp_path).exists()


def test_the_payloads_do_run_where_they_are_not_refused(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    for kind, payload in payloads(tmp_path).items():
        if kind.startswith("eval"):
            continue  # gives the function without calling it; the refusal is what counts
        sentinel(tmp_path).unlink(missing_ok=True)
        pickle.loads(pickle.dumps(payload))
        assert sentinel(tmp_path).exists(), kind


def test_a_checkpoint_may_be_neither_missing_nor_a_folder(config: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.model").mkdir()
    assert "is a folder" in str(check_refused(tmp_path / "folder.model", config))
    assert "no such checkpoint" in str(check_refused(tmp_path / "nowhere.model", config))


def test_safetensors_are_no_model_file_of_the_originals(state: State, config: Path, tmp_path: Path) -> None:
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "x.model")
    check_refused(tmp_path / "x.model", config)


def test_an_undamaged_file_passes_the_same_checks(state: State, config: Path, tmp_path: Path) -> None:
    for number, data in enumerate((zipped(state), legacy(state), archive(entries(zipped(state))))):
        path = tmp_path / f"{number}.model"
        path.write_bytes(data)
        assert not convert(path, tmp_path / str(number), config=config).missing


@pytest.mark.parametrize("kind", ["a missing layer in between", "keys of another network", "a wrong shape"])
def test_without_a_configuration_they_are_refused_too(state: State, words: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(HARMLESS[kind](state))
    with pytest.raises(CheckpointError):
        convert(path, tmp_path / "out", task="pretraining", tokenizer=words, settings={"num_attention_heads": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["x.model"]
