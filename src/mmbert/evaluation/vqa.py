"""VQA: predicted answers and those of ten people go in; accuracy comes out, by the rules of the official evaluation.

Normalisation, soft scores and vocabulary: ``mmbert.data.answers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmbert.data.answers import (
    MIN_OCCURRENCES,
    answer_vocabulary,
    leave_one_out,
    normalise_answer,
    soft_scores,
)
from mmbert.errors import DataError

__all__ = [
    "MIN_OCCURRENCES",
    "VqaReport",
    "answer_vocabulary",
    "known_answers",
    "normalise_answer",
    "soft_scores",
    "vqa_accuracy",
    "vqa_report",
]


def vqa_accuracy(predicted: str, answers: Sequence[str], *, always_normalise: bool = False) -> float:
    """Accuracy of one predicted answer, 0 to 1.

    For each person in turn, the other persons' answers that equal the prediction are counted: three are fully right,
    ``min(1, matches / 3)``; the mean over the persons is the accuracy. A single answer (Visual Genome) counts fully.

    Args:
        predicted: the answer.
        answers: what people said (ten in VQA v2).
        always_normalise: the official script compares texts as they are where all people said the same; True
            normalises then too, which is what a model with a normalised vocabulary needs.

    Raises:
        DataError: there are no answers.
    """
    given = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    predicted = predicted.replace("\n", " ").replace("\t", " ").strip()
    if always_normalise or len(set(given)) > 1:
        given = [normalise_answer(answer) for answer in given]
        predicted = normalise_answer(predicted)
    return leave_one_out(given.count(predicted), len(given))


@dataclass(frozen=True, slots=True)
class VqaReport:
    """Accuracy in percent.

    Args:
        overall: over all questions.
        answer_types: by the corpus's kind of answer (yes/no, number, other).
        question_types: by how questions begin.
        questions: how many there are.
    """

    overall: float
    answer_types: Mapping[str, float]
    question_types: Mapping[str, float]
    questions: int


def known_answers(annotation: Mapping[str, object]) -> Sequence[str]:
    """What people answered to a question.

    Raises:
        DataError: that is not known.
    """
    answers = annotation.get("answers")
    if not isinstance(answers, (list, tuple)):
        where = f"question {annotation.get('question_id')}"
        raise DataError("its answers are not known", where=where, hint="score train or val, not a test split")
    return answers


def vqa_report(predicted: Mapping[int, str], annotations: Iterable[Mapping[str, object]]) -> VqaReport:
    """Accuracy over all questions and by their types, as the official evaluation reports it.

    Args:
        predicted: question_id -> answer.
        annotations: ``record.annotation`` of every question of the split (``mmbert.data.sources.vqa_v2``).

    Raises:
        DataError: a question has no prediction or no answers, or there is none at all.
    """
    scores: list[float] = []
    by_answer: dict[str, list[float]] = {}
    by_question: dict[str, list[float]] = {}
    for annotation in annotations:
        question_id, answers = annotation.get("question_id"), known_answers(annotation)
        if not isinstance(question_id, int) or question_id not in predicted:
            where = f"question {question_id}"
            raise DataError("it has no prediction", where=where, hint="predict every question of the split")
        score = vqa_accuracy(predicted[question_id], answers)
        scores.append(score)
        by_answer.setdefault(str(annotation.get("answer_type", "")), []).append(score)
        by_question.setdefault(str(annotation.get("question_type", "")), []).append(score)
    if not scores:
        raise DataError("no questions to score")
    return VqaReport(
        _percent(scores),
        {name: _percent(of) for name, of in sorted(by_answer.items())},
        {name: _percent(of) for name, of in sorted(by_question.items())},
        len(scores),
    )


def _percent(scores: Sequence[float]) -> float:
    return 100 * sum(scores) / len(scores)
