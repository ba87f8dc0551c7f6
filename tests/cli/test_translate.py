"""`mmbert translate`, `caption`, `evaluate mt`: models that write at ``[MASK]``, and options that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from colours import picture
from written import TEXTS, masked_writer, writing_model

from mmbert.api.front_door import MMBert
from mmbert.api.writer import Writer
from mmbert.cli.main import run

Folders = dict[str, str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """At ``[MASK]`` and by a beam: model folders; and texts, an image and data to use them with."""
    work = tmp_path_factory.mktemp("writers")
    masked_writer(accents=False).save_pretrained(work / "at_mask")
    writing_model().save_pretrained(work / "beam")
    (work / "a.txt").write_text("\n".join(TEXTS) + "\n")
    picture("red").save(work / "red.png")
    (work / "data").mkdir()
    rows = [json.dumps({"text_en": text, "text_de": "ein großer Käfer"}) for text in TEXTS]
    (work / "data" / "metadata.jsonl").write_text("\n".join(rows))
    return {name: str(work / name) for name in ("at_mask", "beam", "a.txt", "red.png", "data")}


def test_a_model_that_writes_at_the_mask_translates(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["translate", folders["a.txt"], "--model", folders["at_mask"]]
    own = Writer(MMBert.from_pretrained(folders["at_mask"], device="cpu")).write(TEXTS)
    assert run(command) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [found.text for (found,) in own]
    assert "language" not in said.err
    assert run([*command, "--to", "de", "--json"]) == 0
    said = capsys.readouterr()
    answers = [json.loads(line)["texts"] for line in said.out.splitlines()]
    assert [one["text"] for (one,) in answers] == [found.text for (found,) in own]
    assert [one["score"] for (one,) in answers] == pytest.approx([found.score for (found,) in own], abs=1e-4)
    assert "the one language that it has learned; whether that is de it does not say" in said.err
    assert run([*command, "--beam", "4"]) == 2
    assert "leave beam and nbest out" in capsys.readouterr().err


def test_it_captions(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", folders["red.png"], "--model", folders["at_mask"]]) == 0
    writer = Writer(MMBert.from_pretrained(folders["at_mask"], device="cpu"))
    ((found,),) = writer.write(None, [Path(folders["red.png"])])
    assert capsys.readouterr().out == f"{folders['red.png']}\t{found.text}\n"


def test_it_is_scored_cased_and_folded(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "mt", "--data", folders["data"], "--from", "en", "--to", "de", "--model"]
    assert run([*command, folders["at_mask"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["beam"] == 1
    assert "case:lc" in found["BLEU_folded_signature"]
    assert run([*command, folders["at_mask"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"BLEU, folded {found['BLEU_folded']:.2f}  {found['BLEU_folded_signature']}"
    assert run([*command, folders["beam"]]) == 0
    assert "folded" not in capsys.readouterr().out


@pytest.mark.parametrize("penalty", ["1000", "nan", "-inf"])
def test_a_senseless_length_penalty_is_refused(
    folders: Folders, capsys: pytest.CaptureFixture[str], penalty: str
) -> None:
    options = ["--model", folders["beam"], "--to", "de", "--length-penalty", penalty]
    for command in (
        ["translate", folders["a.txt"], "--json"],
        ["caption", folders["red.png"]],
        ["evaluate", "mt", "--data", folders["data"], "--from", "en"],
    ):
        assert run([*command, *options]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert f"length penalty of {penalty}" in said.err and "-10 to 10" in said.err


def test_the_language_must_be_said_where_there_are_several(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["translate", folders["a.txt"], "--model", folders["beam"]]) == 2
    assert "it writes: de, en" in capsys.readouterr().err
