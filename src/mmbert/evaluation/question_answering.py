"""A model's answers to a corpus's questions: scored by the official rules, or written for the benchmark's server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmbert.api.answering import Answerer, outputs_of_answers
from mmbert.api.front_door import MMBert
from mmbert.data.answers import soft_scores
from mmbert.data.records import Record
from mmbert.errors import DataError
from mmbert.evaluation.vqa import known_answers, vqa_report
from mmbert.files import whole_file


def answer_records(
    model: MMBert, records: Sequence[Record], *, images: bool = True, progress: bool = False
) -> dict[int, str]:
    """The best answer to each question.

    Args:
        model: one that answers questions.
        records: with ``question`` and ``question_id`` in their annotation; those of one image share the work on it.
        images: look at the images; without, only questions are read.
        progress: show a bar on stderr.

    Returns:
        question_id -> answer.

    Raises:
        UsageError: the model does not answer questions. DataError: a record has none, or its number is there twice.
        ImageError: an image is missing or damaged.
    """
    asked = [(_question(record), record) for record in records]
    order = sorted(range(len(asked)), key=lambda i: "" if asked[i][1].image is None else asked[i][1].group)
    seen = model.processor.image_of
    found = Answerer(model).answer(
        [(seen(asked[i][1]) if images else None, asked[i][0][1]) for i in order], progress=progress
    )
    answers: dict[int, str] = {}
    for i, (best,) in zip(order, found, strict=True):
        (question_id, _), record = asked[i]
        if question_id in answers:
            raise DataError(f"question {question_id} is there twice", where=record.origin or record.id)
        answers[question_id] = best.text
    return answers


def evaluate_answers(
    model: MMBert, records: Sequence[Record], *, images: bool = True, progress: bool = False
) -> dict[str, Any]:
    """Accuracy in percent, over all questions and by kinds of answer and question; see :func:`answer_records`.

    Returns:
        ``questions``, ``overall``, ``answer_types`` (yes/no, number, other), ``question_types``, and
        ``in_vocabulary``: the share in percent of questions whose most frequent answer the model can give at all.

    Raises:
        DataError: a question has no answers; this is looked at before the model is asked.
    """
    usual = [_most_frequent(record) for record in records]
    answers = answer_records(model, records, images=images, progress=progress)
    report = vqa_report(answers, [record.annotation for record in records])
    known = outputs_of_answers(Answerer(model).labels)
    return {
        "questions": report.questions,
        "overall": report.overall,
        "answer_types": dict(report.answer_types),
        "question_types": dict(report.question_types),
        "in_vocabulary": 100 * sum(answer in known for answer in usual) / len(usual),
    }


def write_answers(path: Path, answers: dict[int, str]) -> None:
    """Write ``[{"question_id": …, "answer": …}, …]`` in the order of the numbers, as EvalAI takes it.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = [{"question_id": number, "answer": answers[number]} for number in sorted(answers)]
    with whole_file(path) as part:
        part.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _most_frequent(record: Record) -> str:
    """The normalised answer that most people gave."""
    _question(record)
    return next(iter(soft_scores(known_answers(record.annotation))))


def _question(record: Record) -> tuple[int, str]:
    number, question = (record.annotation.get(name) for name in ("question_id", "question"))
    if not isinstance(number, int) or not isinstance(question, str) or not question.strip():
        raise DataError(
            "the record has no question with a number",
            where=record.origin or record.id,
            hint="`mmbert data prepare vqa_v2` makes a store of the official files",
        )
    return number, question
