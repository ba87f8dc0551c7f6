"""The originals' tokenizers: BERT's word pieces, lower-cased and stripped of accents, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmbert.errors import ConfigError
from mmbert.text.tokenizer import CLS, MASK, PAD, SEP, UNK


def load_tokenizer(name: str | Path | None, beside: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a converted model.

    Args:
        name: a folder with ``vocab.txt`` or a saved tokenizer, or a hub id.
        beside: folder of the configuration that named it, where it is looked for too.

    Raises:
        ConfigError: there is none.
    """
    hint = "give its folder (with vocab.txt) or a hub id: --tokenizer"
    if not name:
        raise ConfigError("no tokenizer is named", hint=hint)
    places = [Path(name), *([beside / str(name)] if beside is not None else [])]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is not None and (folder / "vocab.txt").is_file():
        return word_pieces(folder / "vocab.txt")
    try:
        if folder is not None:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return _from_hub(str(name))
    except Exception as error:
        raise ConfigError(f"no tokenizer {str(name)!r}: {type(error).__name__}", hint=hint) from error


def _from_hub(name: str) -> PreTrainedTokenizerBase:
    from huggingface_hub import file_exists, hf_hub_download
    from huggingface_hub.errors import HFValidationError

    if not name.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise HFValidationError(name)
    if name.startswith("bert-") or file_exists(name, "vocab.txt"):
        return word_pieces(Path(hf_hub_download(name, "vocab.txt")))
    return AutoTokenizer.from_pretrained(name)


def word_pieces(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a ``vocab.txt``, one piece per line.

    Raises:
        ConfigError: it is no vocabulary of BERT's.
    """
    try:
        pieces = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the vocabulary", where=str(path)) from error
    vocabulary = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    absent = [token for token in (PAD, UNK, CLS, SEP, MASK) if token not in vocabulary]
    if absent:
        raise ConfigError(f"the vocabulary has no {', '.join(absent)}", where=str(path))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B {SEP}",
        special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def join_pieces(pieces: Iterable[str]) -> str:
    """Word pieces as the originals write them out: joined by blanks, continued words put together."""
    return " ".join(pieces).replace(" ##", "")
