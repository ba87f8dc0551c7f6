"""``--int8``: every command that computes with a model has it, and computes in 8 bits with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from answered import LABELS, LOOKING, draw_two, make_squares
from torch import Tensor
from vl_corpora import make_refcoco, make_vcr

from mmbert import MMBert, MMBertConfig, MMBertForPreTraining, MMBertProcessor
from mmbert.cli.main import command_names, load_command, run
from mmbert.data.prepare import prepare
from mmbert.model.int8 import Int8Weight, largest_weight
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)
VISION_ALONE = {("features", "extract")}
"""Run the vision encoder, which stays in fp32."""


def computing() -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Commands that say where to compute, with the names of their options."""
    for name in command_names():
        command = load_command(name)
        children = getattr(command, "commands", None)
        for path, one in [((name,), command)] if children is None else [((name, n), c) for n, c in children.items()]:
            options = {option for parameter in one.params for option in parameter.opts}
            if "--device" in options:
                yield path, options


def test_every_command_that_computes_with_a_model_has_it() -> None:
    found = dict(computing())
    assert {("answer",), ("embed",), ("evaluate", "mlt"), ("predict", "vcr"), ("report",)} <= set(found)
    assert {path for path, options in found.items() if "--int8" not in options} == VISION_ALONE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can do everything, of weights as they are initialised, and something to do for each command."""
    root = tmp_path_factory.mktemp("world")
    make_squares(root / "files", {"train2014": 1, "val2014": 2, "test2015": 1})
    prepare("vqa_v2", root / "files", root / "vqa", {"boxes": str(root / "files")}, allow_incomplete=True)
    (root / "refcoco").mkdir()
    make_refcoco(root / "refcoco")
    (root / "films").mkdir()
    make_vcr(root / "films")
    prepare("vcr", root / "films", root / "vcr", {"split": "val,test"}, allow_incomplete=True)
    draw_two(np.random.default_rng(3))[0].save(root / "a.png")
    row = {"file_name": "a.png", "caption_en": "the bank", "caption_de": "das Ufer", "word_en": "bank"}
    (root / "metadata.jsonl").write_text(json.dumps(row | {"word_de": "Ufer", "split": "test"}), "utf-8")
    (root / "run" / "best").mkdir(parents=True)
    (root / "run" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (root / "words.txt").write_text("ufer\ngeldhaus\n", "utf-8")
    tokenizer = train_tokenizer(["what is left of the red square? the bank das Ufer"] * 5, vocab_size=80)
    config = MMBertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
        visual_size=64, region_feature_size=96, coordinate_frequencies=2, num_region_classes=0, embedding_size=8,
        visual_scale_text_init=1.0, visual_scale_object_init=1.0, vision=LOOKING, max_text_tokens=64,
        initializer_range=0.1,
        heads={
            "answer": {"kind": "linear", "outputs": len(LABELS), "labels": LABELS},
            "grounding": {"kind": "transform", "outputs": 1},
            "choice": {"kind": "linear", "outputs": 1},
            "lexical": {"kind": "linear", "outputs": 2},
        },
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMBertForPreTraining(config)
    MMBert(model, MMBertProcessor(tokenizer, config, model.trunk.vision)).save_pretrained(root / "run" / "best")
    return root


COMMANDS = {
    "answer": "answer a.png left? --model MODEL --json",
    "ground": "ground a.png square --model MODEL --json",
    "explain": "explain a.png square --model MODEL --json",
    "report": "report run --data . --map pca",
    "evaluate vqa": "evaluate vqa --data vqa:val --model MODEL --json",
    "evaluate vcr": "evaluate vcr --data vcr:val --q2a MODEL --qa2r MODEL --json",
    "evaluate mlt": "evaluate mlt --data . --model MODEL --words words.txt --train . --json",
    "evaluate grounding": "evaluate grounding --data refcoco_plus --from refcoco --split val --model MODEL --json",
    "predict vqa": "predict vqa --data vqa:test --model MODEL --out answers.json --json",
    "predict vcr": "predict vcr --data vcr:test --q2a MODEL --qa2r MODEL --out answers.csv --json",
}


@pytest.mark.skipif(not largest_weight(), reason="this PyTorch has no products in 8 bits")
@pytest.mark.parametrize("command", COMMANDS)
def test_it_multiplies_in_8_bits_when_it_is_told_to_alone(
    command: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Tensor] = []
    product = Int8Weight.product

    def counted(self: Int8Weight, values: Tensor, bias: Tensor | None) -> Tensor:
        made.append(product(self, values, bias))
        return made[-1]

    monkeypatch.setattr(Int8Weight, "product", counted)
    monkeypatch.setattr("mmbert.model.int8.int8_is_faster", lambda: True)
    monkeypatch.chdir(world)
    asked = COMMANDS[command].replace("MODEL", "run/best").split()
    assert run([*asked, "--device", "cpu"]) == 0
    exact = capsys.readouterr().out
    assert not made
    assert run([*asked, "--device", "cpu", "--int8"]) == 0
    assert len(made) >= 4, "query, key and value, what comes out of attention, and two of the feed-forward part"
    assert close(exact, capsys.readouterr().out)


def close(one: str, other: str) -> bool:
    """Whether the same was printed, but for figures that are off by less than a twentieth."""
    if not one.startswith("{"):
        return one == other
    return flat(json.loads(one)) == pytest.approx(flat(json.loads(other)), abs=0.05)


def flat(value: object, name: str = "") -> dict[str, object]:
    """Figures by the way to them; order and places of what is near in value may differ."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, object] = {name: value} if isinstance(value, float) else {}
    for key, part in items:
        found |= flat(part, f"{name}.{key}")
    return {way: figure for way, figure in found.items() if ".box" not in way}
