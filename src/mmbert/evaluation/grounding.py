"""How well a model finds what expressions mean: records with expressions and true boxes go in, accuracies come out.

An answer is right if its box overlaps the true one by half or more (intersection over union, as all papers on RefCOCO
count). Regions that encoders see are the candidates, the whole image among them, as in VL-BERT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbert.api.front_door import MMBert
from mmbert.api.grounding import Grounder, Grounding
from mmbert.data.records import Record
from mmbert.errors import DataError
from mmbert.files import whole_file
from mmbert.vision.boxes import overlaps

OVERLAP = 0.5


@dataclass(frozen=True)
class Answer:
    """What a model answered to one expression.

    Attributes:
        record: with the expression and the true box.
        found: candidates with their scores.
        overlaps: [n] of each candidate with the true box.
    """

    record: Record
    found: Grounding
    overlaps: np.ndarray

    @property
    def overlap(self) -> float:
        """Of the chosen box with the true one."""
        return float(self.overlaps[self.found.best])

    @property
    def right(self) -> bool:
        """Whether that is enough."""
        return self.overlap >= OVERLAP


@dataclass(frozen=True)
class GroundingResult:
    """Answers and how many of them are right.

    Attributes:
        report: ``accuracy``, ``expressions``, ``images``, ``candidates`` (regions per expression), ``possible`` (share
            of expressions with any candidate that would be right), ``chance`` (accuracy of drawing a candidate), all of
            them again by split under ``splits``; shares are in 0..1.
        answers: in the order of the records.
    """

    report: dict[str, Any]
    answers: list[Answer]


def evaluate_grounding(
    model: MMBert, records: Sequence[Record], *, batch_tokens: int = 8192, progress: bool = False
) -> GroundingResult:
    """Ground every expression.

    Args:
        model: one that grounds.
        records: with ``expression`` and ``box`` in their annotation; others are left out.
        batch_tokens: positions per pass.
        progress: show a bar on stderr.

    Raises:
        UsageError: the model does not ground.
        DataError: no record has an expression; or one has no boxes that the model could look into.
    """
    grounder = Grounder(model)
    usable = [record for record in records if record.image is not None and record.annotation.get("expression")]
    if not usable:
        raise DataError("no record has an image and an expression", hint="name a corpus such as refcoco")
    asked = []
    for record in usable:
        if grounder.takes_boxes and not record.boxes:
            raise DataError("no boxes to choose from", where=record.origin or record.id)
        image = model.processor.image_of(record)
        assert image is not None
        asked.append((image, str(record.annotation["expression"])))
    found = grounder.ground(asked, batch_tokens=batch_tokens, progress=progress)
    answers = [
        Answer(record, one, overlaps(one.boxes, record.annotation["box"]))
        for record, one in zip(usable, found, strict=True)
    ]
    splits: dict[str, list[Answer]] = {}
    for answer in answers:
        splits.setdefault(answer.record.split or "", []).append(answer)
    by_split = {name: _figures(part) for name, part in splits.items()}
    return GroundingResult({**_figures(answers), "splits": by_split}, answers)


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    right = [answer.overlaps >= OVERLAP for answer in answers]
    return {
        "accuracy": round(float(np.mean([answer.right for answer in answers])), 6),
        "expressions": len(answers),
        "images": len({answer.record.image.key for answer in answers if answer.record.image is not None}),
        "candidates": round(float(np.mean([len(one) for one in right])), 3),
        "possible": round(float(np.mean([one.any() for one in right])), 6),
        "chance": round(float(np.mean([one.mean() for one in right])), 6),
    }


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write JSON lines: the expression, its ids, the chosen box with its score, the true one, and their overlap.

    Raises:
        UsageError: the file cannot be written.
    """
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(_line(answer), ensure_ascii=False) + "\n")


def _line(answer: Answer) -> dict[str, Any]:
    said = answer.record.annotation
    return {
        "id": answer.record.id,
        "split": answer.record.split,
        **{key: said[key] for key in ("sent_id", "ref_id", "ann_id", "image_id") if key in said},
        "expression": said["expression"],
        "box": [round(edge, 2) for edge in answer.found.box],
        "score": round(float(answer.found.scores[answer.found.best]), 6),
        "true_box": list(said["box"]),
        "overlap": round(answer.overlap, 4),
        "right": answer.right,
    }
