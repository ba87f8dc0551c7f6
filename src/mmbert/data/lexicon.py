"""Ambiguous words and their translations: what a record says of them, and what a corpus of records says together.

In: records with ``annotation`` as ``data/sources/mlt.py`` and ``legacy.py`` give it, or with columns ``word_en``,
``word_de``. Out: :class:`LexicalItem` of each, and a :class:`Lexicon` of many.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mmbert.data.records import Record
from mmbert.errors import ConfigError, DataError
from mmbert.text.forms import find_form

Answers = Literal["given", "occurring"]
"""Which word is right: the one that the record gives, or the form of it that stands in the other sentence."""
_COLUMN = "word_"


@dataclass(frozen=True, slots=True)
class LexicalItem:
    """A word in a sentence, and its translations into one language.

    Attributes:
        word: as in a dictionary, mostly; not always the form in the sentence.
        language: of the translations.
        translations: any of them is right.
        sentence: with the word.
        other: its translation; "" where the record has none.
    """

    word: str
    language: str
    translations: tuple[str, ...]
    sentence: str
    other: str

    def right(self, answers: Answers) -> tuple[str, ...]:
        """The right translations; with ``occurring`` each in the form that stands in the other sentence, if one does.

        MLT's training rows give dictionary forms (*weiß*), its test rows of 2016 and 2017 what stands in the reference
        (*weißen*).
        """
        return tuple(dict.fromkeys(self.form(text, answers) for text in self.translations))

    def form(self, translation: str, answers: Answers) -> str:
        """One of the translations, in the form that ``answers`` says."""
        span = None if answers == "given" else find_form(translation, self.other)
        return translation if span is None else self.other[slice(*span)]


def lexical_items(record: Record) -> list[LexicalItem]:
    """What a record asks and answers; nothing where it is about no word.

    Raises:
        DataError: it has a word and translations, but no sentence.
    """
    annotation = record.annotation
    if "word" in annotation:
        word, given = str(annotation["word"]), {str(annotation["language"]): annotation["translations"]}
        source = next((code for code in record.captions if code not in given), None)
    else:
        words = annotation.get("words") or _columns(record.extra)
        if len(words) < 2:
            return []
        source, *targets = words
        word, given = " ".join(_split(words[source])), {code: words[code] for code in targets}
    sentence = next(iter(record.captions.get(source or "", ())), None)
    if sentence is None:
        raise DataError("a word without a sentence", where=record.origin or record.id)
    items = []
    for language, translations in given.items():
        other = next(iter(record.captions.get(language, ())), "")
        if texts := tuple(_split(translations)):
            items.append(LexicalItem(word, language, texts, sentence, other))
    return items


def _columns(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(_COLUMN): value for name, value in extra.items() if name.startswith(_COLUMN) and value}


def _split(value: Any) -> Iterator[str]:
    """Words of a list or of a text with blanks between them."""
    for part in (value,) if isinstance(value, str) else value:
        yield from str(part).split()


Counts = dict[str, dict[str, dict[str, dict[str, int]]]]
"""Language -> word -> translation -> what records give for it (itself, or another form) -> how often; lower-case."""


class Lexicon:
    """Translations that words had in training, and how often: what a word can mean, and what it means mostly.

    Args:
        counts: as :attr:`counts` of another.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts: Counts = copy.deepcopy(counts or {})

    def add(self, item: LexicalItem, answers: Answers = "given") -> None:
        """Count the right translations of an item."""
        of_word = self.counts.setdefault(item.language, {}).setdefault(item.word.lower(), {})
        for given in item.translations:
            of_form = of_word.setdefault(item.form(given, answers).lower(), {})
            of_form[given.lower()] = of_form.get(given.lower(), 0) + 1

    def translations_of(self, item: LexicalItem) -> Mapping[str, Mapping[str, int]]:
        """Translations of the item's word, each with what records give for it; empty where the word was never seen."""
        return self.counts.get(item.language, {}).get(item.word.lower(), {})

    def majority(self, item: LexicalItem, answers: Answers = "occurring") -> str | None:
        """The most frequent translation (of equals the first of the alphabet); None where the word was never seen.

        Args:
            item: the word.
            answers: ``given``: of what the records give; ``occurring``: of the translations as they were counted.
        """
        total: Counter[str] = Counter()
        for translation, given in self.translations_of(item).items():
            total.update(given if answers == "given" else {translation: sum(given.values())})
        return min(total, key=lambda text: (-total[text], text), default=None)

    def all_translations(self) -> list[str]:
        """Those of all words, in the order of the alphabet."""
        return sorted({text for words in self.counts.values() for found in words.values() for text in found})

    @cached_property
    def given(self) -> set[str]:
        """What records give, for any word; of a lexicon that is complete."""
        forms = (found for words in self.counts.values() for of_word in words.values() for found in of_word.values())
        return {text for given in forms for text in given}


def read_lexicon(records: Iterable[Record], answers: Answers = "given") -> Lexicon:
    """The lexicon of training records.

    Raises:
        DataError: none of them is about a word.
    """
    lexicon = Lexicon()
    for record in records:
        for item in lexical_items(record):
            lexicon.add(item, answers)
    if not lexicon.counts:
        raise DataError("no record gives a word and its translations", hint="`mmbert data list mlt` says what it needs")
    return lexicon


def read_words(path: Path) -> list[str]:
    """A list of target words, one a line, in the order of the model's outputs.

    Raises:
        ConfigError: it cannot be read, is empty, or names a word twice.
    """
    try:
        words = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the list of target words", where=str(path)) from error
    twice = next((word for number, word in enumerate(words) if word in words[:number]), None) if words else "nothing"
    if len(set(words)) != len(words) or not words:
        raise ConfigError(f"the list of target words has {twice!r} twice" if words else "no words", where=str(path))
    return words
