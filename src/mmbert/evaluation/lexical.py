"""Lexical translation: a model and records go in; accuracy with and without the image, beside what counting gives.

An item is right when the word that is chosen is one of those that the record lists, whatever its case. The baseline is
the most frequent translation of the word in the rows that the model was trained on (Lala and Specia, 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmbert.api.front_door import MMBert
from mmbert.api.inputs import by_budget
from mmbert.data.images import AnyImage
from mmbert.data.lexicon import Answers, LexicalItem, lexical_items
from mmbert.data.packing import collate
from mmbert.data.records import Record
from mmbert.errors import DataError, UsageError
from mmbert.tasks.lexical_translation import HEAD, TargetWords, sequence

WITH_IMAGE, WITHOUT_IMAGE, MAJORITY = COLUMNS = ("with_image", "without_image", "majority")
"""Ways to choose; of each there is a share of right choices, None where nobody chose that way."""


@dataclass
class Choice:
    """One item and what was chosen.

    Attributes:
        item: the word in its sentence.
        right: translations that count as right, lower-case.
        chosen: by way (:data:`COLUMNS`) the word chosen; None where the way had nothing to choose from.
        seen: the word was in the training rows.
        in_list: a right translation is in the model's list, whichever word it belongs to.
        reachable: one is among those chosen from.
    """

    item: LexicalItem
    right: frozenset[str]
    seen: bool
    in_list: bool
    reachable: bool
    chosen: dict[str, str | None] = field(default_factory=dict)

    def is_right(self, way: str) -> bool:
        """Whether this way's choice is right."""
        word = self.chosen.get(way)
        return word is not None and word.lower() in self.right


@dataclass(frozen=True)
class LexicalResult:
    """Choices of all items; figures are shares of 1.

    Attributes:
        choices: in the order of the records.
        ways: those of :data:`COLUMNS` that were tried.
    """

    choices: list[Choice]
    ways: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Accuracy of each way over all items, over those with unseen words, and what no way could get right."""
        unseen = [choice for choice in self.choices if not choice.seen]
        return {
            "items": len(self.choices),
            "several_references": sum(len(choice.right) > 1 for choice in self.choices),
            **{way: self._accuracy(self.choices, way) for way in COLUMNS},
            "out_of_list": sum(not choice.in_list for choice in self.choices),
            "reachable": sum(choice.reachable for choice in self.choices) / len(self.choices),
            "unseen": {
                "items": len(unseen),
                "words": sorted({choice.item.word for choice in unseen}),
                **{way: self._accuracy(unseen, way) for way in COLUMNS},
            },
        }

    def words(self) -> list[dict[str, Any]]:
        """One row per ambiguous word and language, the most frequent first."""
        groups: dict[tuple[str, str], list[Choice]] = {}
        for choice in self.choices:
            groups.setdefault((choice.item.language, choice.item.word), []).append(choice)
        order = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        return [
            {
                "word": word,
                "language": language,
                "items": len(of_word),
                "seen": of_word[0].seen,
                "out_of_list": sum(not choice.in_list for choice in of_word),
                **{way: self._accuracy(of_word, way) for way in COLUMNS},
                "most_frequent": of_word[0].chosen.get(MAJORITY),
            }
            for (language, word), of_word in order
        ]

    def _accuracy(self, choices: Sequence[Choice], way: str) -> float | None:
        if way not in self.ways or not choices:
            return None
        return sum(choice.is_right(way) for choice in choices) / len(choices)


def target_words(model: MMBert, words: Sequence[str] | None = None) -> TargetWords:
    """What the model's lexical head knows; ``words`` names its outputs where the model does not.

    Raises:
        UsageError: it has no such head, or the list has another length.
    """
    head = dict(model.processor.heads.get(HEAD) or {})
    if HEAD not in model.model.heads:
        raise UsageError("this model has no head for lexical translation", hint="train one: lexical-translation-small")
    if words is not None:
        if len(words) != head["outputs"]:
            raise UsageError(f"{len(words)} target words for a head with {head['outputs']} outputs")
        head["labels"] = list(words)
    return TargetWords(head)


def evaluate_lexical(
    model: MMBert,
    records: Sequence[Record],
    *,
    target: TargetWords | None = None,
    images: bool = True,
    answers: Answers = "given",
    as_given: bool = False,
    whole_list: bool = False,
    languages: Sequence[str] | None = None,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> LexicalResult:
    """Choose a translation for every item.

    Args:
        model: with a lexical head.
        records: with a word and its translations; others are left out.
        target: what the head's outputs mean; None asks the model.
        images: choose with the image, too, where every record has one.
        answers: which translations are right, as of the task.
        as_given: answer not with a target word but with what the training rows give for it (a dictionary form, where
            the targets are forms that occur); the probabilities of all its forms are added up.
        whole_list: choose among all target words, not only among the translations that the word had in training.
        languages: of the translations; None: all.
        batch_tokens: positions per pass.
        progress: show a bar on stderr.

    Raises:
        UsageError: the model has no lexical head, or a language that no record has translations in.
        DataError: no record is about a word.
    """
    target = target if target is not None else target_words(model)
    found = [(item, record) for record in records for item in lexical_items(record)]
    if not found:
        raise DataError("no record gives a word and its translations", hint="`mmbert data list mlt` says what it needs")
    present = sorted({item.language for item, _ in found})
    for language in languages or ():
        if language not in present:
            raise UsageError(f"no words translated to {language!r}", hint=f"there are: {', '.join(present)}")
    chosen = present if languages is None else languages
    items = [(item, model.processor.image_of(record)) for item, record in found if item.language in chosen]
    if not items:
        raise UsageError("no language to evaluate", hint=f"there are: {', '.join(present)}")
    among = [np.ones(len(target.words), dtype=bool) if whole_list else target.candidates(item) for item, _ in items]
    choices = [_choice(target, item, mask, answers, as_given) for (item, _), mask in zip(items, among, strict=True)]
    seeing = images and model.processor.images is not None and all(image is not None for _, image in items)
    ways = (WITH_IMAGE, WITHOUT_IMAGE, MAJORITY) if seeing else (WITHOUT_IMAGE, MAJORITY)
    for way in ways[:-1]:
        shown = [(item, image if way == WITH_IMAGE else None) for item, image in items]
        for number, logits in _logits(model, target, shown, batch_tokens, progress):
            choice = choices[number]
            scores = np.where(among[number], logits + target.prior(choice.item), -np.inf)
            choice.chosen[way] = _best(target, choice.item, scores, as_given)
    for choice in choices:
        choice.chosen[MAJORITY] = target.lexicon.majority(choice.item, "given" if as_given else "occurring")
    return LexicalResult(choices, ways if target.lexicon.counts else ways[:-1])


def _choice(target: TargetWords, item: LexicalItem, among: np.ndarray, answers: Answers, as_given: bool) -> Choice:
    """An item before anything is chosen; ``among`` [outputs] says which target words may be."""
    right = frozenset(text.lower() for text in item.right(answers))
    known = target.lexicon.translations_of(item)
    words = {target.words[number].lower() for number in np.flatnonzero(among)}
    options = {text for word in words for text in known.get(word, (word,))} if as_given else words
    seen = bool(known) or not target.lexicon.counts
    every = target.lexicon.given if as_given else target.numbers
    in_list = any(text in every for text in right)
    return Choice(item, right, seen=seen, in_list=in_list, reachable=not right.isdisjoint(options))


def _best(target: TargetWords, item: LexicalItem, logits: np.ndarray, as_given: bool) -> str:
    """The target word with the highest of the [outputs] logits, or the most probable of what is given for them."""
    if not as_given:
        return target.words[int(logits.argmax())]
    known = target.lexicon.translations_of(item)
    total: dict[str, float] = {}
    probabilities = np.exp(logits - logits.max())
    for number in np.flatnonzero(probabilities):
        word = target.words[number].lower()
        counts = known.get(word, {word: 1})
        for text, count in counts.items():
            total[text] = total.get(text, 0.0) + float(probabilities[number]) * count / sum(counts.values())
    return max(total, key=lambda text: total[text])


def _logits(
    model: MMBert,
    target: TargetWords,
    items: Sequence[tuple[LexicalItem, AnyImage | None]],
    batch_tokens: int,
    progress: bool,
) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each item and its [outputs] logits; short sequences come first."""
    processor = model.processor
    examples = [sequence(processor, item, neighbours=target.neighbours, image=image) for item, image in items]
    lengths = [len(e.token_ids) + processor.region_count(e.image) + 1 for e in examples]
    order = sorted(range(len(items)), key=lengths.__getitem__)
    with tqdm(total=len(items), desc="words", disable=not progress, unit="word") as bar, torch.inference_mode():
        for part in by_budget(order, lengths, batch_tokens):
            batch = collate([examples[i] for i in part], processor.images).to(model.device)
            pooled = model.model(batch, positions=batch.starts).pooled
            yield from zip(part, model.model.head_logits(HEAD, pooled).float().cpu().numpy(), strict=True)
            bar.update(len(part))
