"""Training a tokenizer, and refusing one that does not fit."""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from mmbert.errors import ConfigError, DataError
from mmbert.text.tokenizer import SPECIAL_TOKENS, check_tokenizer, train_tokenizer

TEXTS = [
    "Ein Elefant steht im Schnee.", "ein Hund, ein Ball", "un éléphant dans la neige", "Собака бежит по снегу",
    "كلب يركض في الثلج", "一只狗在雪地里奔跑", "犬が雪の中を走っている", "สุนัขวิ่งอยู่บนหิมะ", "눈 속을 달리는 개",
] * 3  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer(TEXTS, vocab_size=300)


def test_sequences_and_pairs_are_framed(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer("Hund").tokens()[0] == "[CLS]"
    assert tokenizer("Hund").tokens()[-1] == "[SEP]"
    pair = tokenizer("Hund", "犬")
    assert [t for t in pair.tokens() if t.startswith("[")] == ["[CLS]", "[SEP]", "[SEP]"]
    assert pair.sequence_ids()[1] == 0
    assert pair.sequence_ids()[-2] == 1


def test_special_tokens_have_the_first_ids_and_are_never_cut(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id == 0
    assert tokenizer("[MASK]").input_ids == [2, 4, 3]


@pytest.mark.parametrize("text", TEXTS[:9])
def test_known_text_comes_back(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFKC", text)


def test_case_and_accents_stay(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer("Éléphant").input_ids != tokenizer("elephant").input_ids
    assert tokenizer("Ein").input_ids != tokenizer("ein").input_ids


def test_forms_of_one_character_are_one(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer("e\u0301le\u0301phant").input_ids == tokenizer("éléphant").input_ids
    assert tokenizer("Ｈｕｎｄ").input_ids == tokenizer("Hund").input_ids


def test_characters_never_seen_are_unknown(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.unk_token_id in tokenizer("ᚠ").input_ids


def test_there_are_no_more_entries_than_asked_for() -> None:
    assert len(train_tokenizer(TEXTS, vocab_size=150)) <= 150


PRINT = """
import hashlib, sys
sys.path.insert(0, {path!r})
from mmbert.text.tokenizer import train_tokenizer
print(hashlib.sha256(train_tokenizer({texts!r}, vocab_size={size}).backend_tokenizer.to_str().encode()).hexdigest())
"""


def random_corpus(seed: int) -> list[str]:
    drawn = random.Random(seed)
    letters = "abcdefgh漢字かなสุนัข"
    words = ["".join(drawn.choices(letters, k=drawn.randint(1, 9))) for _ in range(60)]
    rare = [chr(c) for c in range(0x4E00, 0x4E00 + 40)]
    return [" ".join(drawn.choices(words, k=drawn.randint(1, 8))) for _ in range(100)] + rare


def test_another_process_trains_the_same_tokenizer() -> None:
    """A run that goes on, or runs on two machines, must give each piece the id it had."""
    texts = random_corpus(0)
    here = train_tokenizer(texts, vocab_size=140).backend_tokenizer.to_str()
    code = "import hashlib\n" + PRINT.format(path="", texts=texts, size=140)
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    import hashlib

    assert there == hashlib.sha256(here.encode()).hexdigest()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(90, 160))
def test_training_again_gives_the_same_tokenizer(seed: int, size: int) -> None:
    texts = random_corpus(seed)
    assert len({train_tokenizer(texts, vocab_size=size).backend_tokenizer.to_str() for _ in range(3)}) == 1


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", "  \n"], vocab_size=100)


def test_too_few_entries_for_the_characters_are_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot train a tokenizer of 50 entries"):
        train_tokenizer([chr(0x4E00 + i) for i in range(200)], vocab_size=50)


def test_a_tokenizer_without_mask_is_refused() -> None:
    without = BertTokenizerFast(vocab={w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))})
    check_tokenizer(without, 6)
    with pytest.raises(ConfigError, match="6 entries, the model 5"):
        check_tokenizer(without, 5)
    without.mask_token = None
    with pytest.raises(ConfigError, match="mask_token_id"):
        check_tokenizer(without, 6)
