"""VQA: predicted answers and those of ten people go in; accuracy, soft scores and an answer vocabulary come out.

The rules are those of the official evaluation of VQA v2 (Antol et al., ICCV 2015; Goyal et al., CVPR 2017), with the
quirks of its text processing, since published numbers are made with them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmbert.errors import DataError, UsageError

MIN_OCCURRENCES = 9
"""An answer given for at least as many questions enters the vocabulary (3,129 of them for VQA v2 train and val)."""

_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official script passes a flag where a count belongs, so that it drops no more than these

_RIGHT_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'")


_CONTRACTIONS = {wrong: right for right in _RIGHT_FORMS for wrong in _without_one_apostrophe(right)} | {
    "somebody'd": "somebodyd"  # as in the official list
}


def normalise_answer(text: str) -> str:
    """An answer as the official evaluation compares it.

    Punctuation goes (or becomes a blank between words), full stops go unless a digit follows, words for 0 to 10 become
    numbers, articles go, contractions get their apostrophe, everything is lower case.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    kept = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_blank or drop_all else " ")
    return _PERIOD.sub("", kept, count=_MOST_PERIODS)


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
    return _leave_one_out(given.count(predicted), len(given))


def _leave_one_out(matches: int, people: int) -> float:
    """Mean over the people of ``min(1, matches among the others / 3)``."""
    if people == 0:
        raise DataError("a question without answers cannot be scored")
    if people == 1:
        return float(matches)
    among_matching = matches * min(1.0, (matches - 1) / 3)
    return (among_matching + (people - matches) * min(1.0, matches / 3)) / people


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Each normalised answer with the accuracy it would get, most frequent first: the targets of training.

    With ten people: 0.3, 0.6, 0.9 and 1 for one, two, three and more of them.

    Raises:
        DataError: there are no answers.
    """
    if not answers:
        raise DataError("a question without answers cannot be scored")
    counts = Counter(normalise_answer(answer) for answer in answers)
    return {answer: _leave_one_out(count, len(answers)) for answer, count in counts.most_common()}


def answer_vocabulary(answers: Iterable[str], minimum: int = MIN_OCCURRENCES) -> list[str]:
    """Normalised answers that occur at least ``minimum`` times, the most frequent first, equals in alphabetical order.

    The published list of 3,129 counts each question's most frequent answer (``annotation["answer"]``) in train and val.

    Raises:
        UsageError: ``minimum`` is below 1.
        DataError: no answer occurs so often.
    """
    if minimum < 1:
        raise UsageError(f"an answer cannot occur {minimum} times", hint="give 1 or more")
    counts = Counter(normalise_answer(answer) for answer in answers)
    counts.pop("", None)  # nothing but punctuation or an article
    kept = [answer for answer, count in counts.items() if count >= minimum]
    if not kept:
        raise DataError(f"no answer occurs {minimum} times", hint="are these the training answers?")
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


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
        question_id, answers = annotation.get("question_id"), annotation.get("answers")
        where = f"question {question_id}"
        if not isinstance(answers, (list, tuple)):
            raise DataError("its answers are not known", where=where, hint="score train or val, not a test split")
        if not isinstance(question_id, int) or question_id not in predicted:
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
