"""Answers to a corpus's questions: official figures, the file that EvalAI takes, and a corpus that is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answered import LABELS, LOOKING, answering_model, draw_two, make_squares
from pydantic import BaseModel, ConfigDict, TypeAdapter

from mmbert import MMBert
from mmbert.api.answering import Answerer
from mmbert.api.features import Job, extract_features
from mmbert.cli.main import run
from mmbert.data.images import identity
from mmbert.data.prepare import prepare
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.errors import DataError, UsageError
from mmbert.evaluation.measures import vqa as measure
from mmbert.evaluation.question_answering import answer_records, evaluate_answers
from mmbert.evaluation.vqa import vqa_accuracy
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train

torch.set_num_threads(1)


class Result(BaseModel):
    """A row of the challenge's results format (https://visualqa.org/evaluation.html)."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question_id: int
    answer: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Official files, a store of them, and a model with random weights."""
    root = tmp_path_factory.mktemp("vqa")
    make_squares(root / "files", {"train2014": 5, "val2014": 4, "test2015": 2})
    settings = {"boxes": str(root / "files")}
    prepare("vqa_v2", root / "files", root / "store", settings, allow_incomplete=True)
    answering_model().save_pretrained(root / "model")
    return root


def records_of(world: Path, split: str = "val") -> list[Record]:
    source = open_data(f"{world / 'store'}:{split}")
    return [source[i] for i in range(len(source))]


def test_boxes_come_from_coco_and_splits_can_be_joined(world: Path) -> None:
    records = records_of(world)
    assert all(len(record.boxes) == 2 and record.size == (64, 64) for record in records)
    assert {box.name for record in records for box in record.boxes} == {"object"}
    assert [r.id for r in records_of(world, "train+val")] == [r.id for r in [*records_of(world, "train"), *records]]
    with pytest.raises(DataError, match="no split 'dev'"):
        open_data(f"{world / 'store'}:train+dev")
    assert not any(record.boxes for record in records_of(world, "test")), "COCO has none of test images"


def test_answers_in_batches_are_those_alone_and_each_image_is_worked_on_once(world: Path) -> None:
    bert, records = MMBert.from_pretrained(world / "model"), records_of(world)
    found = answer_records(bert, records)
    one = Answerer(bert)
    for record in records:
        ((best, *_),) = one.answer([(bert.processor.image_of(record), record.annotation["question"])], top=3)
        assert found[record.annotation["question_id"]] == best.text
    seen: list[Any] = []
    inner: Any = bert.processor.images
    table = inner.table
    inner.table = lambda images, rng=None: (seen.extend(map(identity, images)), table(images, rng))[1]
    answer_records(bert, records[::2] + records[1::2])
    assert len(seen) == len(set(seen)) == 4


def test_figures_are_the_official_ones(world: Path) -> None:
    bert, records = MMBert.from_pretrained(world / "model"), records_of(world)
    report = evaluate_answers(bert, records)
    found = answer_records(bert, records)
    scores = [vqa_accuracy(found[r.annotation["question_id"]], r.annotation["answers"]) for r in records]
    assert report["overall"] == pytest.approx(100 * np.mean(scores))
    assert report["answer_types"] == {"other": pytest.approx(report["overall"])}
    assert (report["questions"], report["in_vocabulary"]) == (8, 100)
    measured = measure.measure(bert, records, measure.Options(limit=2))
    assert set(measured.figures) == {"overall", "other"}
    assert measured.report["questions"] == 2
    assert measured.show is not None
    shown = measured.show().rows
    assert [row[:2] for row in shown] == [
        (r.annotation["question"], found[r.annotation["question_id"]]) for r in records[:2]
    ]
    assert all(row[2].startswith(f"{r.annotation['answers'][0]} (") for row, r in zip(shown, records, strict=False))
    assert measure.table(report)[-1] == f"| 8 | {report['overall']:.2f} | {report['overall']:.2f} |"
    assert measure.how(measure.Options(limit=2, images=False)) == "the first 2 questions, without images"
    blind = answer_records(bert, records, images=False)
    assert {blind[r.annotation["question_id"]] for r in records[::2]} == {blind[records[0].annotation["question_id"]]}


def test_a_vocabulary_that_is_not_in_normal_form_counts_by_its_normal_form(world: Path) -> None:
    bert = answering_model(labels=["Yes", "No.", "RED", "a green", "The Blue", "white!"])
    report = evaluate_answers(bert, records_of(world))
    assert report["in_vocabulary"] == 100
    assert set(answer_records(bert, records_of(world)).values()) <= set(Answerer(bert).labels), "shown as written"


def test_answers_that_are_not_known_are_noticed_before_the_model_is_asked(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Answerer, "answer")
    bert = MMBert.from_pretrained(world / "model")
    with pytest.raises(DataError, match="answers are not known"):
        evaluate_answers(bert, [*records_of(world), *records_of(world, "test")])
    with pytest.raises(DataError, match="no question with a number"):
        evaluate_answers(bert, [Record("x", origin="folder:7")])


def test_faults_name_the_record(world: Path) -> None:
    bert, records = MMBert.from_pretrained(world / "model"), records_of(world)
    with pytest.raises(DataError, match="is there twice"):
        answer_records(bert, [records[0], records[0]])
    with pytest.raises(DataError, match="no question with a number") as caught:
        answer_records(bert, [Record("x", origin="folder:7")])
    assert caught.value.where == "folder:7"
    with pytest.raises(UsageError, match="a question is empty"):
        Answerer(bert).answer([(None, " ")])
    with pytest.raises(UsageError, match="cannot give 0 answers"):
        Answerer(bert).answer([(None, "x")], top=0)
    bert.config.heads = None
    with pytest.raises(UsageError, match="does not answer questions"):
        Answerer(bert)


def test_commands(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, store = str(world / "model"), str(world / "store")
    assert run(["evaluate", "vqa", "--model", model, "--data", f"{store}:val", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["overall"] == evaluate_answers(MMBert.from_pretrained(model), records_of(world))["overall"]
    assert run(["evaluate", "vqa", "--model", model, "--data", f"{store}:val"]) == 0
    assert f"{report['overall']:.2f}" in capsys.readouterr().out
    out = tmp_path / "test.json"
    assert run(["predict", "vqa", "--model", model, "--data", f"{store}:test", "--out", str(out)]) == 0
    assert f"{out}: 4 answers\n" in capsys.readouterr().err
    written = json.loads(out.read_text("utf-8"))
    assert len(TypeAdapter(list[Result]).validate_python(written)) == 4
    assert [row["question_id"] for row in written] == [r.annotation["question_id"] for r in records_of(world, "test")]
    assert {row["answer"] for row in written} <= set(LABELS)
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]
    assert run(["evaluate", "vqa", "--model", model, "--data", f"{store}:test"]) == 2
    assert "answers are not known" in capsys.readouterr().err


def test_one_question_from_the_command_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, _, _ = draw_two(np.random.default_rng(3))
    image.save(tmp_path / "a.png")
    asked = ["answer", str(tmp_path / "a.png"), "what is left?", "--model", str(world / "model")]
    assert run([*asked, "--box", "1,2,21,22", "--box", "40,2,60,22", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["answers"]
    bert = MMBert.from_pretrained(world / "model")
    own = bert.answer(image, "what is left?", boxes=[[1, 2, 21, 22], [40, 2, 60, 22]])
    assert [(one["answer"], one["probability"]) for one in found] == [
        (o.text, pytest.approx(o.probability)) for o in own
    ]
    assert len(found) == 5
    assert [o.probability for o in own] == sorted((o.probability for o in own), reverse=True)
    assert run([*asked, "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for wrong, message in (
        (["--box", "1,2,3"], "is not x1,y1,x2,y2"),
        (["--box", "9,9,1,1"], "ends before it starts"),
        (["--box", "1,2,3,4", "--box", "1e9,1,2e9,3"], "outside of the image of 64x64 [boxes[1]]"),
    ):
        assert run([*asked, *wrong]) == 2
        assert message in capsys.readouterr().err
    plain = answering_model({"kind": "grid", "backbone": "test_resnet", "image_size": 32})
    assert plain.answer(image, "what is left?", k=1)
    with pytest.raises(UsageError, match="makes its own regions"):
        plain.answer(image, "what is left?", boxes=[[1, 2, 3, 4]])


@pytest.mark.slow
def test_it_is_learned_from_official_files(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Joint training on train and val, from stored regions; questions alone do not tell the answer."""
    root = tmp_path / "files"
    make_squares(root, {"train2014": 60, "val2014": 20, "test2015": 1}, seed=1)
    prepare("vqa_v2", root, tmp_path / "store", {"boxes": str(root)}, allow_incomplete=True)
    options = ",".join(f"{k}={str(v).lower()}" for k, v in LOOKING.items() if k not in ("kind", "backbone"))
    encoder = f"grid:{LOOKING['backbone']},{options}"
    extract_features(Job(f"{tmp_path / 'store'}:train+val", encoder, str(tmp_path / "regions")))
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "visual_size": 32,
        "coordinate_frequencies": 4, "with_pooler": False, "hidden_dropout_prob": 0.0, "num_region_classes": 0,
        "attention_probs_dropout_prob": 0.0, "max_text_tokens": 32, "visual_scale_text_init": 0.3,
        "visual_scale_object_init": 0.3,
    }  # fmt: skip
    words = tmp_path / "words"
    answering_model().processor.tokenizer.save_pretrained(words)
    overrides = [f"model.config.{key}={value}" for key, value in sizes.items()]
    overrides += ["model.config.heads.answer.exclusive=false"]  # each by itself: surer with so few questions
    overrides += ["model.init=null", "model.config.vision=null", f"model.tokenizer.path={words}", "save_dtype=fp32"]
    overrides += ["components.questions.options={flip: 0.5, min_occurrences: 5}", "components.questions.records=32"]
    overrides += ["steps=600", "epochs=null", "precision=fp32", "optimizer.lr=2e-3", "optimizer.frozen=[]"]
    overrides += [f"features={tmp_path / 'regions'}", f"data={tmp_path / 'store'}:train+val"]
    result = train(load_recipe("question-answering", overrides), tmp_path / "run")
    bert = MMBert.from_pretrained(result.model)
    assert bert.config.heads is not None
    assert sorted(bert.config.heads["answer"]["labels"]) == sorted(["red", "green", "blue", "white"])
    assert bert.config.mask_token_id == bert.processor.tokenizer.mask_token_id
    extract_features(Job(f"{world / 'store'}:val", encoder, str(tmp_path / "new")))
    command = ["evaluate", "vqa", "--model", str(result.model), "--data", f"{world / 'store'}:val", "--json"]
    capsys.readouterr()
    assert run([*command, "--features", str(tmp_path / "new")]) == 0
    assert json.loads(capsys.readouterr().out)["overall"] >= 75
    assert run([*command, "--features", str(tmp_path / "new"), "--no-images"]) == 0
    assert json.loads(capsys.readouterr().out)["overall"] <= 65
