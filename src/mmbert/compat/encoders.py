"""Text encoders of the BERT family (BERT, multilingual BERT, RoBERTa, XLM-R), read by transformers.

In: a folder or a hub id. Out: their tensors under VL-BERT's names (which are BERT's, but for the ends), so that one
table (``compat.keys``) leads to ours, and the sizes that our configuration needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    BertConfig,
    BertForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from mmbert.errors import CheckpointError

Found = TypeVar("Found")
FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
"""Kinds of model that are read, and the prefix of their tensors."""
OLD_CONFIG = "bert_config.json"
"""What the first BERTs called it."""
BODY = {
    "embeddings.LayerNorm.": "vlbert.embedding_LayerNorm.",
    "embeddings.": "vlbert.",
    "encoder.": "vlbert.encoder.",
    "pooler.": "vlbert.pooler.",
}
HEADS = {
    "cls.predictions.": "vlbert.mlm_head.predictions.",
    "lm_head.dense.": "vlbert.mlm_head.predictions.transform.dense.",
    "lm_head.layer_norm.": "vlbert.mlm_head.predictions.transform.LayerNorm.",
    "lm_head.bias": "vlbert.mlm_head.predictions.bias",
}
TIED = (".decoder.weight", ".decoder.bias")
"""Ends of second names of the word table and of the vocabulary bias."""


@dataclass
class TextEncoder:
    """A text encoder's weights.

    Attributes:
        tensors: name in the file to tensor; only those that the file really holds.
        names: name in the file to VL-BERT's name, for those that have one.
        sizes: the keys of our configuration that it decides.
        unread: names of further tensors in the file.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    sizes: dict[str, Any]
    unread: list[str]


def offline_first(load: Callable[[bool], Found]) -> Found:
    """``load(True)`` from the disk alone; where that fails, ``load(False)``, which may ask the hub."""
    try:
        return load(True)
    except (OSError, ValueError):
        return load(False)


def encoder_kind(name: str) -> str | None:
    """``model_type`` of the model in a folder or on the hub; None where a folder has no configuration.

    Raises:
        CheckpointError: no such folder, and nothing on the hub; or a configuration that cannot be read.
    """
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", OLD_CONFIG)):
        return None
    try:
        if folder.is_dir() and not (folder / "config.json").is_file():
            return "bert"
        with _silent_transformers():
            found = offline_first(lambda local: PreTrainedConfig.get_config_dict(name, local_files_only=local))
    except Exception as error:  # as many kinds as there are ways to fail at it
        what = "cannot read its configuration" if folder.is_dir() else "no such folder, and the hub gave nothing"
        raise CheckpointError(
            f"{what}: {_first_line(error)}", where=name, hint="offline? give a folder, or download the model first"
        ) from error
    return found[0].get("model_type")


def read_encoder(name: str) -> TextEncoder:
    """Read a text encoder.

    Args:
        name: folder (``config.json`` or ``bert_config.json``, and weights) or hub id.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of another family.
    """
    try:
        config = _config(name)
    except Exception as error:
        raise CheckpointError(
            f"no text encoder there: {_first_line(error)}", where=name, hint="give its folder or a hub id"
        ) from error
    if config.model_type not in FAMILIES:
        raise CheckpointError(
            f"a {config.model_type}, which VL-BERT cannot start from", where=name, hint=f"known: {', '.join(FAMILIES)}"
        )
    try:
        with _silent_transformers():
            model, report = offline_first(lambda local: _load(name, config, local))
    except Exception as error:
        raise CheckpointError(f"cannot read the text encoder: {_first_line(error)}", where=name) from error
    if report["mismatched_keys"]:
        raise CheckpointError(f"weights do not fit config.json: {sorted(report['mismatched_keys'])[0]}", where=name)
    missing = set(report["missing_keys"])
    if not any(key for key in model.state_dict() if key.endswith("word_embeddings.weight") and key not in missing):
        raise CheckpointError("the file holds no weights of this encoder", where=name)
    tensors = {key: value for key, value in model.state_dict().items() if key not in missing and not key.endswith(TIED)}
    names = {key: new for key in tensors if (new := _vlbert_name(key, FAMILIES[config.model_type])) is not None}
    return TextEncoder(tensors, names, _sizes(config), sorted(report["unexpected_keys"]))


def _config(name: str) -> PreTrainedConfig:
    old = Path(name) / OLD_CONFIG
    if old.is_file() and not (Path(name) / "config.json").is_file():
        return BertConfig.from_json_file(old)
    with _silent_transformers():
        return offline_first(lambda local: AutoConfig.from_pretrained(name, local_files_only=local))


def _load(name: str, config: PreTrainedConfig, local: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    kind: Any = BertForPreTraining
    if config.model_type != "bert":
        kind = _with_pooler(MODEL_FOR_MASKED_LM_MAPPING[type(config)])
    return kind.from_pretrained(name, config=config, local_files_only=local, output_loading_info=True)


def _with_pooler(kind: Any) -> Any:
    """The class with a pooler in its body: transformers leaves that out beside a masked-token head."""

    class WithPooler(kind):
        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            body = type(getattr(self, self.base_model_prefix))
            setattr(self, self.base_model_prefix, body(config, add_pooling_layer=True))
            self.post_init()

    return WithPooler


def _vlbert_name(key: str, prefix: str) -> str | None:
    """VL-BERT's name of a tensor, or None where it has none (next-sentence head)."""
    table = HEADS | {f"{prefix}.{start}": new for start, new in BODY.items()}
    for start, new in table.items():
        if key.startswith(start):
            return new + key.removeprefix(start)
    return None


def _sizes(config: Any) -> dict[str, Any]:
    """What the encoder says about our configuration; visual vectors are as wide as its states."""
    names = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
        "max_position_embeddings layer_norm_eps pad_token_id"
    ).split()
    # RoBERTa counts positions from behind its padding id on.
    offset = -1 if config.model_type == "bert" else config.pad_token_id
    return {name: getattr(config, name) for name in names} | {
        "position_padding_idx": offset,
        "visual_size": config.hidden_size,
    }


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Its bars and remarks about unused weights stay out: what was not used is reported by ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
