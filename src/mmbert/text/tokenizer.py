"""Tokenizers: any Hugging Face tokenizer is used as it is; a new one can be trained on a corpus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmbert.errors import ConfigError, DataError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

STOP = "[STOP]"
"""What MM-BERT's networks write at the end of a text."""
_LANGUAGE = re.compile(r"\[2([A-Za-z]{2,3}(?:-[A-Za-z0-9]+)*)\]")


def language_token(language: str) -> str:
    """The token that begins a text to be written in this language: ``[2de]``, ``[2zh-Hant]`` (Johnson et al., 2017)."""
    return f"[2{language}]"


def writing_languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Languages that a model with this tokenizer can write, each with the id of its token."""
    found = ((_LANGUAGE.fullmatch(token), number) for token, number in tokenizer.get_vocab().items())
    return {match[1]: number for match, number in sorted(found, key=lambda f: f[1]) if match}


KINDS = ("unigram", "bpe", "wordpiece")
"""Kinds of tokenizer that can be trained."""


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    max_piece_length: int = 16,
    kind: str = "unigram",
    special: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Train a tokenizer with ``[CLS] … [SEP]`` around a sequence.

    Text is NFKC-normalised (word pieces: cleaned as BERT's) and keeps case and accents. Characters never seen become
    ``[UNK]``.

    Args:
        texts: the corpus, one text after the other.
        vocab_size: entries, special tokens included. Small corpora give fewer.
        max_piece_length: longest piece in characters (of unigrams and of BPE).
        kind: ``unigram`` (Kudo, 2018), ``bpe`` (Sennrich et al., 2016) or ``wordpiece`` (as BERT's).
        special: further tokens that are never cut; their ids are the last.

    Raises:
        DataError: the corpus holds no text.
        ConfigError: no such kind, or ``vocab_size`` is too small for the corpus's characters.
    """
    if kind not in KINDS:
        raise ConfigError(f"no tokenizer of kind {kind!r}", hint=f"known: {', '.join(KINDS)}")
    special = [token for token in dict.fromkeys(special) if token not in SPECIAL_TOKENS]
    learned = vocab_size - len(special)
    if learned <= len(SPECIAL_TOKENS):
        raise ConfigError(f"cannot train a tokenizer of {vocab_size} entries", hint="allow more")
    tokenizer, trainer = _untrained(kind, learned, max_piece_length)
    try:
        tokenizer.train_from_iterator(_non_empty(texts), trainer)
    except DataError:
        raise
    except Exception as error:  # the library has no kinds of its own
        raise ConfigError(f"cannot train a tokenizer of {vocab_size} entries: {error}", hint="allow more") from error
    if kind == "unigram":
        tokenizer.model = _in_canonical_order(tokenizer)
    elif tokenizer.get_vocab_size() > learned:
        raise ConfigError(
            f"cannot train a tokenizer of {vocab_size} entries: the texts have more characters", hint="allow more"
        )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    cls, sep = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B {SEP}", special_tokens=[(CLS, cls), (SEP, sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def _untrained(kind: str, vocab_size: int, max_piece_length: int) -> tuple[Tokenizer, Any]:
    """A tokenizer of this kind, and what trains it."""
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(**common)
    tokenizer = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if kind == "bpe":
        return tokenizer, trainers.BpeTrainer(max_token_length=max_piece_length, **common)
    return tokenizer, trainers.UnigramTrainer(
        unk_token=UNK, max_piece_length=max_piece_length, shrinking_factor=0.75, n_sub_iterations=2, **common
    )


RARE_STEP = 1e-4
"""Characters that training itself would have dropped get scores this far apart, from the lowest score upwards."""


def _in_canonical_order(tokenizer: Tokenizer) -> models.Unigram:
    """The trained pieces with ids and scores that depend on the texts alone.

    The library's training walks through hash tables whose order differs from run to run: scores differ in their last
    digits, ids of equally good pieces are exchanged, and the rarest characters get their scores in any order. A model
    trained with the one table must be usable with the other, so scores are rounded, the rarest characters all get the
    lowest, and ties are put in order.
    """
    learned = json.loads(tokenizer.to_str())["model"]
    special = [(piece, score) for piece, score in learned["vocab"] if piece in SPECIAL_TOKENS]
    scores = {piece: score for piece, score in learned["vocab"] if piece not in SPECIAL_TOKENS}
    lowest = min(scores.values())
    steps: dict[int, list[str]] = {}
    for piece, score in scores.items():
        step = round((score - lowest) / RARE_STEP)
        if len(piece) == 1 and abs(score - lowest - step * RARE_STEP) < 1e-8:
            steps.setdefault(step, []).append(piece)
    step = 1
    while step in steps:
        scores |= dict.fromkeys(steps[step], lowest)
        step += 1
    ordered = sorted(((piece, round(score, 6)) for piece, score in scores.items()), key=lambda p: (-p[1], p[0]))
    return models.Unigram([*special, *ordered], learned["unk_id"], learned["byte_fallback"])


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
