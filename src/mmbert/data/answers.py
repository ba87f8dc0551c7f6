"""Answers of VQA: their official normalisation, soft scores of a question's answers, and the vocabulary of answers.

The rules are those of the official evaluation of VQA v2 (Antol et al., ICCV 2015; Goyal et al., CVPR 2017), with the
quirks of its text processing, since published numbers are made with them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmbert.errors import ConfigError, DataError, UsageError

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


def leave_one_out(matches: int, people: int) -> float:
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
    return {answer: leave_one_out(count, len(answers)) for answer, count in counts.most_common()}


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


def read_answers(path: Path) -> list[str]:
    """A vocabulary written one answer a line, as they are (outputs of published heads are numbered so).

    Raises:
        ConfigError: it cannot be read, is empty, or names an answer twice.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the answers", where=str(path)) from error
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        answer = line.strip()
        if not answer or answer in numbers:
            wrong = "an empty line" if not answer else f"{answer!r} is there already, in line {numbers[answer]}"
            raise ConfigError(wrong, where=f"{path}:{number}", hint="one answer a line")
        numbers[answer] = number
    if not numbers:
        raise ConfigError("names no answer", where=str(path), hint="one answer a line")
    return list(numbers)
