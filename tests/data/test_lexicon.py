"""What records say of ambiguous words, in the three forms that corpora have it, and what many say together."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import SHARED, needs, records

from mmbert.data.lexicon import LexicalItem, Lexicon, lexical_items, read_lexicon, read_words
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError

CAPTIONS = {"en": ("a man in a white hat",), "de": ("ein mann mit einem weißen hut",)}
MLT = {"word": "white", "language": "de", "translations": ["weiß"]}


def item(word: str, *translations: str, other: str = "", language: str = "de") -> LexicalItem:
    return LexicalItem(word, language, translations, f"the {word}", other)


def test_three_forms_of_a_record_say_the_same() -> None:
    expected = [LexicalItem("white", "de", ("weiß",), CAPTIONS["en"][0], CAPTIONS["de"][0])]
    assert lexical_items(Record("a", captions=CAPTIONS, annotation=MLT)) == expected
    legacy = {"words": {"en": ["white"], "de": ["weiß"]}}
    assert lexical_items(Record("a", captions=CAPTIONS, annotation=legacy)) == expected
    assert lexical_items(Record("a", captions=CAPTIONS, extra={"word_en": "white", "word_de": "weiß"})) == expected
    assert lexical_items(Record("a", captions=CAPTIONS)) == []


def test_several_translations_stand_with_blanks_between_them_and_languages_are_items_of_their_own() -> None:
    extra = {"word_en": "white", "word_de": "weiß hell", "word_fr": "blanc"}
    german, french = lexical_items(Record("a", captions=CAPTIONS, extra=extra))
    assert (german.translations, french.translations, french.other) == (("weiß", "hell"), ("blanc",), "")


def test_a_word_without_its_sentence_is_refused_with_the_place() -> None:
    with pytest.raises(DataError, match=r"rows.txt:3: a word without a sentence"):
        lexical_items(Record("a", captions={"de": ("ein hut",)}, annotation=MLT, origin="rows.txt:3"))


def test_the_occurring_form_stands_in_the_other_sentence() -> None:
    one = item("white", "weiß", "hell", other="ein mann mit weißem hut")
    assert one.right("given") == ("weiß", "hell")
    assert one.right("occurring") == ("weißem", "hell")  # what does not occur stays as it is given


def test_a_lexicon_counts_and_knows_the_most_frequent() -> None:
    lexicon = Lexicon()
    for word, translation in [("hat", "Hut"), ("hat", "hut"), ("hat", "mütze"), ("bank", "ufer"), ("bank", "bank")]:
        lexicon.add(item(word, translation))
    lexicon.add(item("hat", "chapeau", language="fr"))
    assert lexicon.translations_of(item("HAT")) == {"hut": {"hut": 2}, "mütze": {"mütze": 1}}
    assert lexicon.majority(item("hat")) == "hut"
    assert lexicon.majority(item("bank")) == "bank"  # equally frequent: by the alphabet
    assert lexicon.majority(item("hat", language="fr")) == "chapeau"
    assert lexicon.majority(item("cat")) is None
    assert lexicon.all_translations() == ["bank", "chapeau", "hut", "mütze", "ufer"]
    assert Lexicon(lexicon.counts).counts == lexicon.counts


def test_forms_that_occur_remember_what_was_given() -> None:
    lexicon = Lexicon()
    for other in ("weißer hut", "weißen hut", "weißen", "hell weiß"):
        lexicon.add(item("white", "weiß", other=other), "occurring")
    lexicon.add(item("white", "hell", other="ein heller hut"), "occurring")
    assert lexicon.translations_of(item("white")) == {
        "weißer": {"weiß": 1}, "weißen": {"weiß": 2}, "weiß": {"weiß": 1}, "heller": {"hell": 1},
    }  # fmt: skip
    assert lexicon.majority(item("white")) == "weißen"
    assert lexicon.majority(item("white"), "given") == "weiß"


def test_records_without_words_make_no_lexicon() -> None:
    with pytest.raises(DataError, match="no record gives a word"):
        read_lexicon([Record("a", captions=CAPTIONS)])


@pytest.mark.parametrize(("text", "why"), [("", "no words"), ("hut\nmütze\nhut\n", "'hut' twice")])
def test_a_list_of_words_names_each_once(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=why):
        read_words(path)
    path.write_text("hut\n\nmütze", "utf-8")
    assert read_words(path) == ["hut", "mütze"]
    with pytest.raises(ConfigError, match="cannot read"):
        read_words(tmp_path / "none.txt")


@needs("mlt")
def test_the_real_rows_of_2016_give_what_stands_in_the_reference() -> None:
    """The README beside the files: one word that occurs in the other sentence."""
    rows = records(open_data({"source": "mlt", "root": SHARED / "mlt", "split": "test_2016"}))
    assert all(i.right("occurring") == i.right("given") for row in rows for i in lexical_items(row))
