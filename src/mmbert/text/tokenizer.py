"""Tokenizers: any Hugging Face tokenizer is used as it is; a new one can be trained on a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmbert.errors import ConfigError, DataError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_piece_length: int = 16) -> PreTrainedTokenizerFast:
    """Train a unigram tokenizer (Kudo, 2018) with ``[CLS] … [SEP]`` around a sequence.

    Text is NFKC-normalised and keeps case and accents. Characters never seen become ``[UNK]``.

    Args:
        texts: the corpus, one text after the other.
        vocab_size: entries, special tokens included. Small corpora give fewer.
        max_piece_length: longest piece in characters.

    Raises:
        DataError: the corpus holds no text.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token=UNK,
        max_piece_length=max_piece_length,
        shrinking_factor=0.75,
        n_sub_iterations=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_non_empty(texts), trainer)
    cls, sep = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B {SEP}", special_tokens=[(CLS, cls), (SEP, sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def _non_empty(texts: Iterable[str]) -> Iterator[str]:
    count = 0
    for text in texts:
        if text.strip():
            count += 1
            yield text
    if not count:
        raise DataError("no text to train a tokenizer on")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that the model cannot use.

    Raises:
        ConfigError: a special token is missing, or ids go beyond the model's ``vocab_size`` rows.
    """
    missing = [
        n for n in ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id") if _token(tokenizer, n) is None
    ]
    if missing:
        raise ConfigError(f"the tokenizer has no {', '.join(missing)}", hint="use a BERT- or RoBERTa-style tokenizer")
    if len(tokenizer) > vocab_size:
        raise ConfigError(f"the tokenizer has {len(tokenizer)} entries, the model {vocab_size} word rows")


def _token(tokenizer: PreTrainedTokenizerBase, name: str) -> Any:
    return getattr(tokenizer, name, None)
