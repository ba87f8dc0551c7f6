"""The originals' tokenizers: BERT's word pieces, lower-cased and stripped of accents, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmbert.compat.encoders import offline_first
from mmbert.errors import CheckpointError, ConfigError
from mmbert.text.tokenizer import CLS, MASK, PAD, SEP, UNK


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a text encoder or of one of our models, as its own files describe it.

    Where there is a ``vocab.txt`` and no description, it keeps case and accents if the vocabulary has capitals.

    Args:
        name: folder or hub id; the disk comes first.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    folder = Path(name)
    described = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    if (folder / "vocab.txt").is_file() and not described:
        return word_pieces(folder / "vocab.txt", lower_case=None)
    try:
        return offline_first(lambda local: AutoTokenizer.from_pretrained(name, local_files_only=local))
    except Exception as error:  # the libraries below raise many kinds
        message = str(error).strip().splitlines()
        raise CheckpointError(
            f"no usable tokenizer: {message[0][:300] if message else type(error).__name__}", where=name
        ) from error


def load_tokenizer(name: str | Path | None, beside: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a converted model.

    Args:
        name: a ``vocab.txt``, a folder with one or with a saved tokenizer, or a hub id.
        beside: folder of the configuration that named it, where it is looked for too.

    Raises:
        ConfigError: there is none.
    """
    hint = "give its folder (with vocab.txt), the file itself or a hub id: --tokenizer"
    if not name:
        raise ConfigError("no tokenizer is named", hint=hint)
    places = [Path(name), *([beside / str(name)] if beside is not None else [])]
    found = next((place for place in places if place.exists()), None)
    if found is not None:
        file = found / "vocab.txt" if found.is_dir() else found
        if file.is_file():
            return word_pieces(file)
    try:
        if found is not None:
            return _as_the_originals(AutoTokenizer.from_pretrained(found, local_files_only=True))
        return _from_hub(str(name))
    except Exception as error:
        what = "nothing usable in it" if found is not None else "no such folder or file, and the hub gave nothing"
        raise ConfigError(f"no tokenizer {str(name)!r}: {what} ({type(error).__name__})", hint=hint) from error


def _from_hub(name: str) -> PreTrainedTokenizerBase:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        file = offline_first(lambda local: hf_hub_download(name, "vocab.txt", local_files_only=local))
    except LocalEntryNotFoundError:  # nothing was asked, or nobody answered
        raise
    except EntryNotFoundError:  # the model is there, but its vocabulary has another form
        return _as_the_originals(
            offline_first(lambda local: AutoTokenizer.from_pretrained(name, local_files_only=local))
        )
    return word_pieces(Path(file))


def lower_cased(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, lower-casing and stripping accents from now on, as the originals did with every vocabulary.

    Raises:
        ConfigError: it does not cut words into pieces as BERT does.
    """
    if not _is_word_piece(tokenizer):
        raise ConfigError("lower_case is for word pieces (BERT's vocabularies) only")
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    return tokenizer


def _is_word_piece(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, models.WordPiece)


def _as_the_originals(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return lower_cased(tokenizer) if _is_word_piece(tokenizer) else tokenizer


def word_pieces(path: Path, *, lower_case: bool | None = True) -> PreTrainedTokenizerFast:
    """The tokenizer of a ``vocab.txt``, one piece per line.

    Args:
        path: the file.
        lower_case: lower-case and strip accents; None: unless a piece of the vocabulary has a capital.

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
    if lower_case is None:
        lower_case = not any(piece != piece.lower() for piece in vocabulary if not piece.startswith("["))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case, strip_accents=lower_case)
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
