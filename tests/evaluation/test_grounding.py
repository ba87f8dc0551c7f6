"""Accuracy of groundings: the box with the highest score is right if it overlaps the true one by half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grounded import grounding_model
from PIL import Image
from vl_corpora import make_refcoco

from mmbert.api.grounding import Grounding
from mmbert.data.records import ImageRef, Record, RegionBox
from mmbert.data.sources import open_data
from mmbert.errors import DataError, UsageError
from mmbert.evaluation import grounding as module
from mmbert.evaluation.grounding import evaluate_grounding, write_answers
from mmbert.evaluation.measures import grounding as measure

TRUE = (10.0, 10.0, 30.0, 30.0)


def record(number: int, split: str, image: str = "a.png", **annotation: Any) -> Record:
    said = {"expression": f"number {number}", "box": list(TRUE), "sent_id": number} | annotation
    return Record(str(number), ImageRef(path=image), split=split, annotation=said, boxes=(RegionBox(TRUE),), origin="x")


class Known:
    """Stands where the model's grounder stands: answers by number, from a list of (boxes, scores)."""

    takes_boxes = True

    def __init__(self, answers: list[tuple[Any, Any]]) -> None:
        self.answers = answers

    def ground(self, asked: Any, **options: Any) -> list[Grounding]:
        numbers = [int(text.split()[1]) for _, text in asked]
        return [
            Grounding(np.array(b, np.float32), np.array(s, np.float32))
            for b, s in map(self.answers.__getitem__, numbers)
        ]


class Reader:
    """A model of which only ``image_of`` is asked."""

    class processor:
        @staticmethod
        def image_of(record: Record) -> Any:
            return record.image


WHOLE, HALF, LESS, AWAY = (0, 0, 99, 79), (10, 10, 30, 50), (10, 10, 30, 51), (50, 50, 60, 60)
ANSWERS = [
    ([WHOLE, TRUE, AWAY], [0.1, 0.9, 0.3]),  # right
    ([WHOLE, HALF, AWAY], [0.1, 0.4, 0.3]),  # right: just half
    ([WHOLE, LESS, AWAY], [0.1, 0.9, 0.3]),  # a little less, and nothing there would be right
    ([WHOLE, TRUE, AWAY], [0.8, 0.7, 0.3]),  # the whole image was chosen
]


def test_accuracy_by_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "Grounder", lambda model: Known(ANSWERS))
    records = [record(0, "val"), record(1, "testA", "b.png"), record(2, "testA", "b.png"), record(3, "val")]
    records.append(Record("q", ImageRef(path="a.png"), annotation={"question": "no expression"}))
    result = evaluate_grounding(Reader(), records)  # type: ignore[arg-type]
    assert result.report["accuracy"] == 0.5
    assert result.report["splits"] == {
        "val": {
            "accuracy": 0.5, "expressions": 2, "images": 1, "candidates": 3.0, "possible": 1.0, "chance": 0.333333,
        },
        "testA": {
            "accuracy": 0.5, "expressions": 2, "images": 1, "candidates": 3.0, "possible": 0.5, "chance": 0.166667,
        },
    }  # fmt: skip
    assert [answer.right for answer in result.answers] == [True, True, False, False]
    write_answers(tmp_path / "out.jsonl", result.answers)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["right"] for line in lines] == [True, True, False, False]
    assert lines[1] == {
        "id": "1", "split": "testA", "sent_id": 1, "expression": "number 1", "box": list(HALF), "score": 0.4,
        "true_box": list(TRUE), "overlap": 0.5, "right": True,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_what_a_run_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Grounder", lambda model: Known(ANSWERS))
    records = [record(0, "val"), record(2, "testA")]
    measured = measure.measure(Reader(), records, measure.Options())  # type: ignore[arg-type]
    assert measured.figures == {"accuracy": 0.5, "accuracy_val": 1.0, "accuracy_testA": 0.0}
    assert measure.table(measured.report)[2:] == [
        "| val | 1 | 100.0 | 100.0 | 33.3 |",
        "| testA | 1 | 0.0 | 0.0 | 0.0 |",
    ]
    first = measure.Options(limit=1)
    assert measure.measure(Reader(), records, first).figures == {"accuracy": 1.0, "accuracy_val": 1.0}  # type: ignore[arg-type]
    assert measure.how(first) == "the first 1 expressions"


def test_examples_are_drawn_where_the_image_is_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "Grounder", lambda model: Known(ANSWERS))
    Image.new("RGB", (100, 80), (200, 200, 200)).save(tmp_path / "a.png")
    records = [record(0, "val", str(tmp_path / "a.png")), record(2, "val", str(tmp_path / "gone.png"))]
    measured = measure.measure(Reader(), records, measure.Options())  # type: ignore[arg-type]
    assert measured.show is not None
    found = measured.show()
    assert found.rows[0] == ("1", "number 0", "10, 10, 30, 30", "10, 10, 30, 30", "1.00", "yes")
    assert [row[-1] for row in found.rows] == ["yes", "no"]
    assert list(found.pictures) == ["expression_1"]


def test_official_files_with_objects_and_with_detections(tmp_path: Path) -> None:
    make_refcoco(tmp_path)
    bert = grounding_model()
    for candidates, count in (("objects", 3), ("detections", 3), ("detections+objects", 5)):
        options = {"source": "refcoco_plus", "root": tmp_path, "split": "val", "candidates": candidates}
        source = open_data(options)
        result = evaluate_grounding(bert, [source[i] for i in range(len(source))])
        (answer,) = result.answers
        assert len(answer.found.boxes) == count  # the whole image, then the boxes
        assert answer.found.boxes[1:].tolist() == [list(box.box) for box in answer.record.boxes]
        assert answer.right == (answer.overlap >= 0.5)
        target = answer.record.annotation["target"]
        if target is not None:
            assert answer.overlaps[1 + target] == 1.0


def test_nothing_to_ground_is_an_error() -> None:
    bert = grounding_model()
    with pytest.raises(DataError, match="no record has an image and an expression"):
        evaluate_grounding(bert, [Record("r", ImageRef(path="a.png"))])
    with pytest.raises(DataError, match="no boxes to choose from") as caught:
        evaluate_grounding(bert, [Record("r", ImageRef(path="a.png"), annotation={"expression": "x"}, origin="f:3")])
    assert caught.value.where == "f:3"
    with pytest.raises(UsageError, match="does not ground expressions"):
        evaluate_grounding(grounding_model(head=False), [record(0, "val")])
