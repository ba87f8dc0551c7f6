"""Tokenizers of three kinds, trained on a few sentences in scripts of different density."""

from __future__ import annotations

import pytest
from tiny import Quarters, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmbert.api.processing import MMBertProcessor
from mmbert.text.tokenizer import train_tokenizer

TEXTS = {
    "en": ("A dog runs through the snow.", "two children with a red ball"),
    "de": ("Ein Hund rennt durch den Schnee.", "Donaudampfschifffahrtsgesellschaft"),
    "th": ("สุนัขวิ่งอยู่บนหิมะ", "เด็กสองคนเล่นลูกบอลสีแดง"),
    "zh": ("一只狗在雪地里奔跑", "两个孩子拿着一个红色的球"),
    "ar": ("كلب يركض في الثلج", "طفلان مع كرة حمراء"),
    "ko": ("눈 속을 달리는 개", "빨간 공을 가진 두 아이"),
}


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: a character outside ASCII may take several pieces."""
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(names.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS["en"], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)


def word_piece() -> BertTokenizerFast:
    """As BERT's; special tokens stand in the middle of the table."""
    letters = sorted({c for texts in TEXTS.values() for t in texts for c in t.lower()} - {" "})
    table = [
        "[PAD]",
        *letters,
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"##{c}" for c in letters),
        "dog",
        "##nee",
        "hund",
    ]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(table)})


@pytest.fixture(scope="session", params=["unigram", "word piece", "byte level"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "unigram":
        return train_tokenizer([t for texts in TEXTS.values() for t in texts] * 3, vocab_size=250)
    return word_piece() if request.param == "word piece" else byte_level()


@pytest.fixture(scope="session")
def processor(tokenizer: PreTrainedTokenizerBase) -> MMBertProcessor:
    """At most 32 text tokens and five regions."""
    return MMBertProcessor(tokenizer, tiny_config(vocab_size=len(tokenizer), max_text_tokens=32), Quarters())
