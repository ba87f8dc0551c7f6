"""Finding a word's form in a sentence: real pairs of lexical translation, and what must not be taken for a form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.text.forms import find_form


def found(word: str, sentence: str, compounds: bool = False) -> str | None:
    span = find_form(word, sentence, compounds=compounds)
    return None if span is None else sentence[slice(*span)]


@pytest.mark.parametrize(
    ("word", "sentence", "form"),
    [
        ("weiß", "zwei junge weiße männer", "weiße"),
        ("halten", "ein mann hält eine gitarre", "hält"),
        ("young", "two Young , white males", "Young"),
        ("operate", "men are operating a pulley", "operating"),
        ("porter", "une femme portant un chapeau", "portant"),
        ("ad", "a booth with ads behind him", "ads"),
        ("stehen", "sie steht , die anderen stehen", "stehen"),  # the word itself wins over an earlier form
        ("strom", "an einer stromleitung", None),  # a compound is no form
        ("gehen", "ein mann läuft", None),
        ("hat", "a hatter", "hatter"),
        ("a", "an apple", "an"),
    ],
)
def test_a_form_has_the_same_start_and_another_ending(word: str, sentence: str, form: str | None) -> None:
    assert found(word, sentence) == form


def test_compounds_count_where_they_are_asked_for() -> None:
    assert found("phone", "on her cellphone") is None
    assert found("phone", "on her cellphone", compounds=True) == "cellphone"
    assert found("phone", "a cellphone and two phones", compounds=True) == "phones"


@settings(max_examples=40)
@given(st.lists(st.text("abcdeßéï", min_size=1, max_size=8), min_size=1, max_size=6), st.data())
def test_a_word_of_the_sentence_is_always_found(words: list[str], data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(words))
    form = found(word, " ".join(words))
    assert form is not None
    assert form.casefold() == word.casefold()
