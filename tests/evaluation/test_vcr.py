"""VCR's accuracies and leaderboard file, of models whose choices are known, and of small real ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import shake, tiny_config
from vl_corpora import make_image, make_vcr, vcr_line, vcr_metadata, write_json

from mmbert import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.cli.main import run
from mmbert.data.packing import collate
from mmbert.data.prepare import prepare
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError, UsageError
from mmbert.evaluation import vcr
from mmbert.evaluation.measures import vcr as measure
from mmbert.evaluation.vcr import Chooser
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)
QUESTIONS = 6
PUBLISHED = (
    "annot_id,answer_0,answer_1,answer_2,answer_3,"
    "rationale_conditioned_on_a0_0,rationale_conditioned_on_a0_1,rationale_conditioned_on_a0_2,"
    "rationale_conditioned_on_a0_3,rationale_conditioned_on_a1_0,rationale_conditioned_on_a1_1,"
    "rationale_conditioned_on_a1_2,rationale_conditioned_on_a1_3,rationale_conditioned_on_a2_0,"
    "rationale_conditioned_on_a2_1,rationale_conditioned_on_a2_2,rationale_conditioned_on_a2_3,"
    "rationale_conditioned_on_a3_0,rationale_conditioned_on_a3_1,rationale_conditioned_on_a3_2,"
    "rationale_conditioned_on_a3_3"
)
"""The first line that the leaderboard asks for."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about two stills in val, one in test."""
    root = tmp_path_factory.mktemp("vcr")
    for split, count in (("train", 1), ("val", QUESTIONS), ("test", 1)):
        lines = []
        for number in range(count):
            line = vcr_line(number, split, image=f"{split}@{number % 2}")
            if split != "test":
                line |= {"answer_label": number % 4, "rationale_label": (number * 3) % 4}
            lines.append(json.dumps(line))
            make_image(root / "vcr1images" / "movie_A" / f"{split}@{number % 2}.jpg", number)
            write_json(root / "vcr1images" / "movie_A" / f"{split}@{number % 2}.json", vcr_metadata())
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def records(corpus: Path, split: str = "val") -> list[Record]:
    source = open_data({"source": "vcr", "root": corpus, "split": split})
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small end-to-end network with random weights."""
    words = "Why do look at ? likes it . No barks They not Dogs bark smiles So what It is so and person dog Casey Riley"
    tokenizer = train_tokenizer([words] * 3, vocab_size=300)
    config = tiny_config(
        vocab_size=len(tokenizer), region_feature_size=2048, heads={"choice": {"kind": "linear", "outputs": 1}},
        vision={"kind": "resnet", "layers": 14, "short_side": 32, "long_side": 48},
    )  # fmt: skip
    torch.manual_seed(0)
    network = MMBertForPreTraining(config).eval()
    for part in (network.trunk.embeddings, network.trunk.encoder, network.trunk.pooler, network.heads):
        shake(part)
    folder = tmp_path_factory.mktemp("model")
    MMBert(network, MMBertProcessor(tokenizer, config, network.trunk.vision)).save_pretrained(folder)
    return folder


class Told:
    """A chooser that says what it is told, and remembers what it was asked."""

    def __init__(self, chosen: Sequence[int]) -> None:
        self.chosen = list(chosen)
        self.asked: list[tuple[str, int | None]] = []

    def probabilities(self, asked: Sequence[tuple[Record, int | None]], *, progress: bool = False) -> np.ndarray:
        self.asked = [(record.id, answer) for record, answer in asked]
        return np.eye(4)[self.chosen]


def test_accuracies_against_a_count_by_hand(corpus: Path) -> None:
    """Answers are 0 1 2 3 0 1, rationales 0 3 2 1 0 3."""
    answers: Any = Told([0, 1, 2, 0, 0, 3])  # right: 1 1 1 0 1 0
    rationales: Any = Told([0, 0, 2, 1, 0, 3])  # right: 1 0 1 1 1 1
    report = vcr.evaluate_vcr(records(corpus), answers=answers, rationales=rationales)
    assert report == {"questions": 6, "Q2A": 4 / 6, "QA2R": 5 / 6, "Q2AR": 3 / 6}
    assert answers.asked == [(f"val-{n}", None) for n in range(6)]
    assert rationales.asked == [(f"val-{n}", n % 4) for n in range(6)], "the right answer is given"
    assert vcr.evaluate_vcr(records(corpus), rationales=rationales) == {"questions": 6, "QA2R": 5 / 6}
    with pytest.raises(DataError, match="no answer_label") as caught:
        vcr.evaluate_vcr(records(corpus, "test"), answers=answers)
    assert caught.value.where == "test.jsonl:1"
    unasked: Any = Told([])
    half = replace(records(corpus)[0], annotation=records(corpus, "test")[0].annotation | {"answer_label": 1})
    with pytest.raises(DataError, match="no rationale_label"):
        vcr.evaluate_vcr([half], answers=unasked, rationales=unasked)
    assert unasked.asked == [], "labels are looked at before a model is asked"


def test_choices_are_those_of_each_sequence_by_itself(corpus: Path, model: Path) -> None:
    bert = MMBert.from_pretrained(model, device="cpu")
    found = records(corpus)[:3]
    chooser = Chooser.of(bert, "rationale")
    asked: list[tuple[Record, int | None]] = [(found[0], 1), (found[1], 0), (found[2], 3)]
    probabilities = chooser.probabilities(asked)
    wanted = []
    with torch.no_grad():
        for record, answer in asked:
            parts = [
                bert.model(collate([e], bert.processor.images)).pooled for e in chooser.task.choices(record, answer)
            ]
            wanted.append(bert.model.head_logits("choice", torch.cat(parts))[:, 0].softmax(0).numpy())
    np.testing.assert_allclose(probabilities, np.stack(wanted), rtol=1e-4, atol=1e-6)
    assert probabilities.std(1).min() > 1e-6


def test_an_image_is_worked_on_once_in_a_pass(corpus: Path, model: Path) -> None:
    bert = MMBert.from_pretrained(model, device="cpu")
    seen: list[int] = []
    bert.model.trunk.vision.conv1.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))  # type: ignore[union-attr]
    vcr.predict_vcr(records(corpus), *(Chooser.of(bert, step) for step in vcr.STEPS))
    assert sum(seen) == 4, "two stills, for 24 answers and for 96 rationales"


def test_the_leaderboard_file(corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    prepare("vcr", corpus, store, options={"split": "val,test"}, allow_incomplete=True)
    out = tmp_path / "test.csv"
    both = ["--q2a", str(model), "--qa2r", str(model), "--device", "cpu"]
    assert run(["predict", "vcr", "--data", f"{store}:test", "--out", str(out), *both]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == PUBLISHED
    (row,) = csv.DictReader(lines)
    assert row["annot_id"] == "test-0"
    groups = ["answer", *(f"rationale_conditioned_on_a{i}" for i in range(4))]
    values = np.array([[float(row[f"{group}_{i}"]) for i in range(4)] for group in groups])
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)
    bert = MMBert.from_pretrained(model, device="cpu")
    (record,) = records(corpus, "test")
    np.testing.assert_allclose(values[:1], Chooser.of(bert, "answer").probabilities([(record, None)]), atol=1e-6)
    given = Chooser.of(bert, "rationale").probabilities([(record, answer) for answer in range(4)])
    np.testing.assert_allclose(values[1:], given, atol=1e-6)
    assert [path.name for path in tmp_path.glob("*.part")] == []
    capsys.readouterr()
    assert run(["evaluate", "vcr", "--data", f"{store}:val", "--json", *both]) == 0
    report = json.loads(capsys.readouterr().out)
    choosers = [Chooser.of(bert, step) for step in vcr.STEPS]
    wanted = vcr.evaluate_vcr(records(corpus), answers=choosers[0], rationales=choosers[1])
    assert {name: report[name] for name in wanted} == wanted
    assert run(["evaluate", "vcr", "--data", f"{store}:test", *both]) == 2
    assert "no answer_label" in capsys.readouterr().err
    assert run(["predict", "vcr", "--data", f"{store}:test", "--out", str(out), "--q2a", str(model)]) == 2
    assert "give both --q2a and --qa2r" in capsys.readouterr().err
    for option, message in (
        ("image=no thing", "option 'image' of the task 'vcr'"),
        ("objects=[", "'objects=[': the value is not valid YAML"),
        ("step=rationale", "the step is no option here"),
    ):
        assert run(["evaluate", "vcr", "--data", f"{store}:val", *both[:2], "--option", option]) == 2
        assert message in capsys.readouterr().err


def test_images_that_do_not_open_are_left_out_where_they_are_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vcr(tmp_path)
    still = next((tmp_path / "vcr1images").rglob("*.jpg"))
    (tmp_path / "val.jsonl").write_text("\n".join(json.dumps(vcr_line(n, "val", image=f"s@{n}")) for n in range(2)))
    for number in range(2):
        make_image(still.with_name(f"s@{number}.jpg"), number)
        write_json(still.with_name(f"s@{number}.json"), vcr_metadata())
    still.with_name("s@1.jpg").write_bytes(b"")
    asked = [
        "evaluate",
        "vcr",
        "--q2a",
        str(model),
        "--data",
        f"{{source: vcr, root: {tmp_path}, split: val}}",
        "--json",
    ]
    assert run(asked) == 2
    capsys.readouterr()
    assert run([*asked, "--skip-bad"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["questions"], [bad["where"] for bad in report["left_out"]]) == (1, ["val.jsonl:2"])
    assert run([*asked, "--skip-bad", "--option", "image=false"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 2, "no image is read"


def test_a_model_reads_questions_as_it_was_trained_to(model: Path, tmp_path: Path) -> None:
    part = {"task": "vcr", "options": {"step": "rationale", "question": False, "max_text": 30}}
    mixture = {"a": {"task": "pretraining", "options": {"max_positions": 9}}, "b": part}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"components": mixture}))
    assert vcr.trained_options(str(tmp_path), "rationale") == part["options"]
    assert vcr.trained_options(str(tmp_path), "answer") == {"max_text": 30}, "without what is the other step's alone"
    assert vcr.trained_options(str(model), "answer") == vcr.trained_options(None, "answer") == {}
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "recipe.yaml").write_text("components: [")
    with pytest.raises(ConfigError, match="not a recipe"):
        vcr.trained_options(str(tmp_path / "damaged"), "answer")
    bert = MMBert.from_pretrained(model, device="cpu")
    bert.name_or_path = str(tmp_path)
    assert Chooser.of(bert, "rationale").task.options.question is False
    assert Chooser.of(bert, "answer").task.options == vcr.vcr.Options(max_text=30)
    with pytest.raises(ConfigError, match="option 'objects' of the task 'vcr'"):
        Chooser.of(bert, "answer", {"objects": "none"})
    plain = MMBert(MMBertForPreTraining(tiny_config()), bert.processor)
    with pytest.raises(UsageError, match="no head 'choice'"):
        Chooser.of(plain, "answer")


def test_the_measure_of_a_run(corpus: Path, model: Path) -> None:
    bert = MMBert.from_pretrained(model, device="cpu")
    options = measure.Options(steps=["answer", "rationale"], limit=4, task={"grounding": False})
    measured = measure.measure(bert, records(corpus), options)
    answers, rationales = (Chooser.of(bert, step, {"grounding": False}) for step in vcr.STEPS)
    assert measured.report == vcr.evaluate_vcr(records(corpus)[:4], answers=answers, rationales=rationales)
    assert set(measured.figures) == {"Q2A", "QA2R", "Q2AR"}
    assert measured.show is not None
    rows = measured.show().rows
    assert [row[0] for row in rows] == ["answer"] * 4 + ["rationale"] * 4
    assert sum(row[4] == "yes" for row in rows[:4]) == 4 * measured.figures["Q2A"]
    assert measure.how(options) == "the first 4 questions"
    head, _, row = measure.table({"questions": 4, "Q2A": 0.75, "QA2R": 0.5, "Q2AR": 0.25})
    assert head == "| questions | Q→A | QA→R | Q→AR |"
    assert row == "| 4 | 75.0 | 50.0 | 25.0 |"
